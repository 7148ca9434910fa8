"""Result files of other programs, made into trials of a sweep of ours: EasyEdit's, SimIE's, MEMIT's and NAS's."""
