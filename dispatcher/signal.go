package dispatcher

// signal wakes who receives from it, once for all that was set until then.
type signal chan struct{}

func newSignal() signal { return make(signal, 1) }

func (s signal) set() {
	select {
	case s <- struct{}{}:
	default: // it is set
	}
}
