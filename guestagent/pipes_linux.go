package guestagent

import (
	"os"
)

// pipe is one of a program's standard streams; ours is the agent's end.
type pipe struct{ ours, theirs *os.File }

type pipes struct{ in, out, err pipe }

func openPipes() (_ *pipes, err error) {
	p := &pipes{}
	defer func() {
		if err != nil {
			p.closeOurs()
			p.closeTheirs()
		}
	}()
	if p.in.theirs, p.in.ours, err = os.Pipe(); err != nil {
		return nil, err
	}
	if p.out.ours, p.out.theirs, err = os.Pipe(); err != nil {
		return nil, err
	}
	p.err.ours, p.err.theirs, err = os.Pipe()
	return p, err
}

// theirs are the program's descriptors 0, 1 and 2.
func (p *pipes) theirs() []uintptr {
	return []uintptr{p.in.theirs.Fd(), p.out.theirs.Fd(), p.err.theirs.Fd()}
}

func (p *pipes) closeTheirs() { closeAll(p.in.theirs, p.out.theirs, p.err.theirs) }
func (p *pipes) closeOurs()   { closeAll(p.in.ours, p.out.ours, p.err.ours) }

func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}
