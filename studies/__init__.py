"""Many runs and the page that they come to: experiments, benchmarks, audits."""
