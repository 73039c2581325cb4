package hostnet

// Whole is whole, for the tests' own lists.
func Whole[T any](list func() ([]T, error)) ([]T, error) { return whole(list) }
