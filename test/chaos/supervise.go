package chaos

import (
	"context"
	"fmt"
	"time"
)

// supervisor starts what ends by itself, as an operator's would. A process may end that cannot begin, because what it needs is broken at the
// moment; one that was of use may not.
type supervisor struct {
	f   *fleet
	say func(format string, args ...any)

	died   []string
	starts int
}

// run looks after processes that no fault has in its hands, until ctx ends.
func (s *supervisor) run(ctx context.Context) {
	for wait(ctx, 200*time.Millisecond) {
		for _, p := range s.f.processes() {
			if p.busy.TryLock() {
				s.look(p)
				p.busy.Unlock()
			}
		}
	}
}

func (s *supervisor) look(p *process) {
	if p.alive() {
		return
	}
	if p.served() {
		s.say("%s has ended by itself", p.name)
		s.died = append(s.died, fmt.Sprintf("%s has ended by itself: %.600s", p.name, p.tail()))
	}
	s.starts++
	if err := p.start(); err != nil {
		s.died = append(s.died, err.Error())
	}
}
