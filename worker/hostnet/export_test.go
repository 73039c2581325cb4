package hostnet

// Sysctls sets what a slot's namespace has of settings, in the thread's.
func Sysctls(cfg Config) error { return sysctls(cfg) }

// Whole is whole, for the tests' own lists.
func Whole[T any](list func() ([]T, error)) ([]T, error) { return whole(list) }
