package cloudhypervisor

import (
	"encoding/json"
	"errors"
	"io"
	"os"
)

// maxEvent bounds what is read of one event. The largest have some 200 bytes.
const maxEvent = 64 << 10

// event is what the VMM tells without being asked (event_monitor/src/lib.rs).
type event struct {
	Source string `json:"source"`
	Event  string `json:"event"`
}

// monitor reads events, JSON objects one after the other, and hands them on. What is no event ends the understanding, not the reading:
// the VMM must not find the pipe full.
func monitor(f *os.File, tell func(event)) {
	limited := &io.LimitedReader{R: f}
	for d := json.NewDecoder(limited); ; {
		limited.N = maxEvent
		var e event
		err := d.Decode(&e)
		if errors.Is(err, io.EOF) && limited.N > 0 {
			return
		}
		if err != nil {
			_, _ = io.Copy(io.Discard, f)
			return
		}
		tell(e)
	}
}

// event notes how the guest ended itself. Cloud Hypervisor tells the same words for what it was told to do, which then nobody waits for.
// A guest that reboots would be booted anew in the same VMM, without its template: it is ended instead.
func (p *process) event(e event) {
	switch e {
	case event{"guest", "panic"}:
		p.guestEnded("panic")
	case event{"vm", "shutdown"}:
		p.guestEnded("shutdown")
	case event{"vm", "rebooting"}:
		p.guestEnded("reset")
	}
}

func (p *process) guestEnded(reason string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reason == "" {
		p.reason = reason
		close(p.over)
	}
}
