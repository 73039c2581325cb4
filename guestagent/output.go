package guestagent

import (
	"io"
	"sync"

	"github.com/paddockvm/paddock/guestagent/wire"
)

// pump reads one of a program's output pipes and sends it on, up to a limit; what comes after that is read, counted and thrown away.
type pump struct {
	from  io.Reader
	ch    wire.Channel
	limit int64 // 0: none
	over  func()

	sent, dropped int64
}

// run returns when the pipe has ended, or when sending fails: then the rest is only read.
func (p *pump) run(send func(ch wire.Channel, b []byte) error) {
	buf := make([]byte, 32<<10)
	for {
		n, err := p.from.Read(buf)
		if n > 0 {
			keep := int64(n)
			if p.limit > 0 {
				keep = min(keep, p.limit-p.sent)
			}
			if keep > 0 {
				if send != nil && send(p.ch, buf[:keep]) != nil {
					send = nil // nobody listens; the program's end is under way
				}
				p.sent += keep
			}
			if keep < int64(n) {
				p.dropped += int64(n) - keep
				p.over()
			}
		}
		if err != nil {
			return
		}
	}
}

// pumps are a program's two output pipes.
type pumps struct {
	stdout, stderr pump
	running        sync.WaitGroup
}

func (p *pumps) start(send func(ch wire.Channel, b []byte) error) {
	p.running.Go(func() { p.stdout.run(send) })
	p.running.Go(func() { p.stderr.run(send) })
}

// counts writes what passed into the exit; call it when both have ended.
func (p *pumps) counts(e *wire.Exit) {
	e.StdoutBytes, e.StdoutDropped = p.stdout.sent, p.stdout.dropped
	e.StderrBytes, e.StderrDropped = p.stderr.sent, p.stderr.dropped
}
