package hostnet

// Sysctls sets what a slot's namespace has of settings, in the thread's.
func Sysctls(cfg Config) error { return sysctls(cfg) }

// Whole is whole, for the tests' own lists.
func Whole[T any](list func() ([]T, error)) ([]T, error) { return whole(list) }

// OthersAsk has as many questions be under way as may be.
func (h *Host) OthersAsk() (answered func()) {
	for range cap(h.asking) {
		h.asking <- struct{}{}
	}
	return func() {
		for range cap(h.asking) {
			<-h.asking
		}
	}
}

// MostPins is how many addresses may be pinned in a slot, of a family.
const MostPins = mostPins
