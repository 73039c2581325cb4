package client

import (
	"context"
	"fmt"
	"io"

	"github.com/paddockvm/paddock/guestagent/wire"
)

// Streams are where a program's streams lead on the host. The writers are called from one goroutine, in the order in which the guest
// sent, and get no more than Exec.Limits.OutputBytes each; a slow one slows the program. A nil Stdin is empty, a nil writer throws away.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Exec runs a program to its end. The Exit is the program's outcome; an error is ours or the agent's: *wire.Error where the agent could
// not run it, ErrLost where the agent vanished, what a writer returned, or ctx's. When ctx ends, the program is killed and Exec returns.
// Exec does not wait for a Stdin that blocks in Read: a goroutine stays in that Read until the caller ends it.
func (c *Client) Exec(ctx context.Context, r wire.Exec, to Streams) (wire.Exit, error) {
	r.StdinOpen = to.Stdin != nil
	s, err := c.open(wire.Request{Op: wire.OpExec, Exec: &r})
	if err != nil {
		return wire.Exit{}, err
	}
	defer s.Close() // the guest kills what a reset stream had started
	if to.Stdin != nil {
		stdinCtx, stop := context.WithCancel(ctx)
		defer stop()
		go feed(stdinCtx, s, to.Stdin)
	}
	got := output{limit: r.Limits.OutputBytes}
	for {
		ch, b, reply, err := s.Recv(ctx)
		if err != nil {
			return exited(ctx, reply, err, got)
		}
		if err := got.take(to, ch, b); err != nil {
			return wire.Exit{}, err
		}
	}
}

// output counts what came, to be held against what the guest says it sent.
type output struct{ limit, stdout, stderr int64 }

func (o *output) take(to Streams, ch wire.Channel, b []byte) error {
	w := to.Stdout
	switch ch {
	case wire.ChanStdout:
		o.stdout += int64(len(b))
	case wire.ChanStderr:
		o.stderr += int64(len(b))
		w = to.Stderr
	default:
		return fmt.Errorf("exec: %w: output on channel %d", ErrLost, ch)
	}
	switch {
	case o.limit > 0 && max(o.stdout, o.stderr) > o.limit:
		return fmt.Errorf("exec: %w: more output than its limit", ErrLost)
	case w == nil:
		return nil
	}
	_, err := w.Write(b)
	return err
}

func exited(ctx context.Context, reply *wire.Reply, err error, got output) (wire.Exit, error) {
	reply, err = result(ctx, wire.OpExec, reply, err)
	switch {
	case err != nil:
		return wire.Exit{}, err
	case reply.Exit == nil:
		return wire.Exit{}, fmt.Errorf("exec: %w: a reply without an exit", ErrLost)
	case reply.Exit.StdoutBytes != got.stdout || reply.Exit.StderrBytes != got.stderr:
		return wire.Exit{}, fmt.Errorf("exec: %w: %d+%d bytes of output came, the agent says %d+%d", ErrLost,
			got.stdout, got.stderr, reply.Exit.StdoutBytes, reply.Exit.StderrBytes)
	}
	return *reply.Exit, nil
}

// feed passes stdin on until it ends, or the program does.
func feed(ctx context.Context, s *wire.Stream, stdin io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := stdin.Read(buf)
		if n > 0 && s.Send(ctx, wire.ChanData, buf[:n]) != nil {
			return
		}
		if err != nil {
			_ = s.End()
			return
		}
	}
}
