// Package guestagent is the program inside a machine: it runs what the host asks for within limits, measures it, and moves files in
// and out. In a Linux guest it is PID 1 (Init); as a plain process it serves the hostproc driver (Serve); InProcess pretends, for
// tests and for measuring everything but the machine.
//
// It imports guestagent/wire, the standard library and x/sys, so that it stays small and starts fast.
package guestagent

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"

	"github.com/paddockvm/paddock/guestagent/wire"
)

// Version counts what the agent can do, for hosts that meet one frozen in an older template. Images are keyed by the binary itself.
//
//	1: the first
//	2: sets a network card up, opens connections to its loopback, resizes
//	3: is restored again in a clone of a machine that lived already
//	4: corrects its clock before a program
const Version = "4"

// agent answers requests. What it can do is in its hands, which differ between a guest, a process and a pretence.
type agent struct {
	hands hands
	hello wire.Hello

	mu      sync.Mutex
	running map[string]run
	dials   int
}

// hands do the operations that touch the machine.
type hands interface {
	start(e *wire.Exec) (run, error)
	put(p *wire.Put, data io.Reader) error
	get(g *wire.Get, send func(h wire.FileHeader, r io.Reader) error) error
	restore(r *wire.Restore) (*wire.Ready, error)
	quiesce() error
	power() error
	dial(ctx context.Context, port int) (*net.TCPConn, error)
	resize(ctx context.Context, r *wire.Resize) (*wire.Size, error)
}

// run is a program that has been started.
type run interface {
	// stdin takes the program's input; closing it ends the input.
	stdin() io.WriteCloser
	// wait sends the output while the program runs, ends everything that it started, and gives its end. Cancelling ctx kills it.
	wait(ctx context.Context, send func(ch wire.Channel, b []byte) error) (wire.Exit, error)
	signal(name string) error
}

func newAgent(h hands, degraded ...string) *agent {
	return &agent{
		hands: h, running: map[string]run{},
		hello: wire.Hello{Version: Version, OS: runtime.GOOS, Arch: runtime.GOARCH, Degraded: degraded},
	}
}

// serve answers one conversation's requests until it ends, and returns when all that it had started has ended.
func (a *agent) serve(c *wire.Conversation) {
	ctx, cancel := context.WithCancel(context.Background())
	var handlers sync.WaitGroup
	for {
		s, err := c.Accept()
		if err != nil {
			break
		}
		handlers.Go(func() { a.handle(ctx, s) })
	}
	cancel()
	handlers.Wait()
}

// handle answers one request. A request that cannot be answered any more leaves its stream without a reply: the host takes that as failure.
func (a *agent) handle(ctx context.Context, s *wire.Stream) {
	defer s.Close()
	reply, err := a.do(ctx, s, s.Request())
	if err != nil {
		var e *wire.Error
		if !errors.As(err, &e) {
			e = &wire.Error{Kind: wire.ErrAgent, Message: err.Error()}
		}
		reply = wire.Reply{Error: &wire.Error{Kind: e.Kind, Message: e.Message[:min(len(e.Message), maxMessage)]}}
	}
	_ = s.Reply(reply) // where that fails, the conversation is over
}

// maxMessage is how much of an error's text crosses. It quotes what the host sent, and must fit a reply even where JSON escapes all of it.
const maxMessage = 4 << 10

func (a *agent) do(ctx context.Context, s *wire.Stream, r *wire.Request) (reply wire.Reply, err error) {
	switch {
	case r.Op == wire.OpHello:
		reply.Hello = &a.hello
	case r.Op == wire.OpPing:
	case r.Op == wire.OpRestore && r.Restore != nil:
		reply.Ready, err = a.restore(r.Restore)
	case r.Op == wire.OpExec && r.Exec != nil:
		reply.Exit, err = a.exec(ctx, s, r.Exec)
	case r.Op == wire.OpSignal && r.Signal != nil:
		err = a.signal(r.Signal)
	case r.Op == wire.OpPut && r.Put != nil:
		err = a.hands.put(r.Put, &exactly{&streamReader{ctx: ctx, s: s}, r.Put.Size})
	case r.Op == wire.OpGet && r.Get != nil:
		reply.Files, err = a.get(ctx, s, r.Get)
	case r.Op == wire.OpQuiesce:
		err = a.quiesce()
	case r.Op == wire.OpPower:
		err = a.hands.power()
	case r.Op == wire.OpDial && r.Dial != nil:
		err = a.dial(ctx, s, r.Dial)
	case r.Op == wire.OpResize && r.Resize != nil:
		reply.Size, err = a.resize(ctx, r.Resize)
	default:
		err = &wire.Error{Kind: wire.ErrRequest, Message: "no operation " + string(r.Op) + ", or without its content"}
	}
	return reply, err
}

// exec runs a program. The stream's data is its stdin; it is killed when the host gives the stream up.
func (a *agent) exec(ctx context.Context, s *wire.Stream, e *wire.Exec) (*wire.Exit, error) {
	if len(e.Argv) == 0 || e.Argv[0] == "" {
		return nil, &wire.Error{Kind: wire.ErrRequest, Message: "exec without a program"}
	}
	r, err := a.begin(e)
	if err != nil {
		return nil, err
	}
	defer a.ended(e.ID)
	ctx, kill := context.WithCancel(ctx)
	defer kill()
	reading, stop := context.WithCancel(ctx)
	var watchers sync.WaitGroup
	watchers.Go(func() { feed(reading, s, r.stdin(), e.StdinOpen) })
	watchers.Go(func() {
		select {
		case <-s.Gone():
			kill()
		case <-reading.Done():
		}
	})
	exit, err := r.wait(ctx, func(ch wire.Channel, b []byte) error { return s.Send(ctx, ch, b) })
	if err == nil && ctx.Err() != nil {
		err = &wire.Error{Kind: wire.ErrAgent, Message: "ended: nobody waits for it"}
	}
	stop()
	_ = r.stdin().Close() // a write that nobody reads ends
	watchers.Wait()
	return &exit, err
}

// begin starts a program and notes it for signals.
func (a *agent) begin(e *wire.Exec) (run, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.running[e.ID] != nil {
		return nil, &wire.Error{Kind: wire.ErrRequest, Message: "exec " + e.ID + " runs already"}
	}
	r, err := a.hands.start(e)
	if err != nil {
		return nil, err
	}
	a.running[e.ID] = r
	return r, nil
}

func (a *agent) ended(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.running, id)
}

// idle is an error while a program runs.
func (a *agent) idle() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.running) > 0 {
		return &wire.Error{Kind: wire.ErrRequest, Message: "a program runs"}
	}
	return nil
}

func (a *agent) quiesce() error {
	if err := a.idle(); err != nil {
		return err
	}
	return a.hands.quiesce()
}

// restore is for a clone in which nothing runs: what ran in a machine that was cloned alive has ended with its host's conversation.
func (a *agent) restore(r *wire.Restore) (*wire.Ready, error) {
	if err := a.idle(); err != nil {
		return nil, err
	}
	return a.hands.restore(r)
}

func (a *agent) signal(s *wire.Signal) error {
	a.mu.Lock()
	r := a.running[s.Exec]
	a.mu.Unlock()
	if r == nil {
		return &wire.Error{Kind: wire.ErrRequest, Message: "exec " + s.Exec + " does not run"}
	}
	return r.signal(s.Signal)
}

// feed writes the stream's data into stdin until the host's end of it, or ctx's. What a program does not read any more is thrown away.
func feed(ctx context.Context, s *wire.Stream, stdin io.WriteCloser, open bool) {
	defer stdin.Close()
	for open {
		_, b, _, err := s.Recv(ctx)
		if err != nil {
			return
		}
		if _, err := stdin.Write(b); err != nil {
			return
		}
	}
}

func (a *agent) get(ctx context.Context, s *wire.Stream, g *wire.Get) (int, error) {
	n := 0
	err := a.hands.get(g, func(h wire.FileHeader, r io.Reader) error {
		n++
		return sendFile(ctx, s, h, r)
	})
	return n, err
}
