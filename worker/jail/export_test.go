package jail

// Filter puts this thread, and what it becomes, behind the filter of system calls alone.
func Filter() error { return (&setup{}).seccomp() }
