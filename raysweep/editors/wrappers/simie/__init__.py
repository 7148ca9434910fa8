"""SimIE: a recursive least-squares correction that makes an editor lifelong."""
