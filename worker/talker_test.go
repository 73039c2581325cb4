package worker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/paddockvm/paddock/guestagent/wire"
)

// numbered is what a talker prints: blocks of a kibibyte that tell where they belong.
func numbered(n int) []byte {
	b := make([]byte, 0, n+1024)
	for i := 0; len(b) < n; i++ {
		b = append(b, bytes.Repeat([]byte("."), 1024)...)
		copy(b[len(b)-1024:], fmt.Sprintf("\nblock %d ", i))
	}
	return b[:n]
}

// talk is a guest with one program, "count BYTES", which prints so much of what numbered gives, and works a millisecond for each 32 KiB. Its
// wall limit is enforced as the agent does it: output that nobody takes holds the program up, and its time goes on.
func talk(ctx context.Context, conn net.Conn) { converse(ctx, conn, answer) }

// stuck is a guest whose program never ends, whatever its limit; and that from its start on says nothing, where it is silent.
func stuck(silent bool) func(ctx context.Context, conn net.Conn) {
	return func(ctx context.Context, conn net.Conn) {
		var runs atomic.Bool
		converse(ctx, conn, func(ctx context.Context, s *wire.Stream, r *wire.Request) wire.Reply {
			if r.Op == wire.OpExec {
				runs.Store(true)
			}
			if r.Op == wire.OpExec || silent && runs.Load() {
				<-ctx.Done()
			}
			return answer(ctx, s, r)
		})
	}
}

// converse is an agent that answers as it is told to.
func converse(ctx context.Context, conn net.Conn, answer func(ctx context.Context, s *wire.Stream, r *wire.Request) wire.Reply) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	_ = wire.Guest(conn, func(c *wire.Conversation) { // it ends with conn
		ctx, cancel := context.WithCancel(context.Background())
		var handlers sync.WaitGroup
		for {
			s, err := c.Accept()
			if err != nil {
				break
			}
			handlers.Go(func() {
				defer s.Close()
				_ = s.Reply(answer(ctx, s, s.Request()))
			})
		}
		cancel()
		handlers.Wait()
	})
}

func answer(ctx context.Context, s *wire.Stream, r *wire.Request) (reply wire.Reply) {
	switch r.Op {
	case wire.OpHello:
		reply.Hello = &wire.Hello{Version: "3", OS: "linux"}
	case wire.OpRestore:
		reply.Ready = &wire.Ready{Epoch: r.Restore.Epoch, BootID: "b"}
	case wire.OpExec:
		reply.Exit = count(ctx, s, r.Exec)
	}
	return reply
}

func count(ctx context.Context, s *wire.Stream, e *wire.Exec) *wire.Exit {
	var exit wire.Exit
	n, err := strconv.Atoi(e.Argv[1])
	if err != nil {
		return &wire.Exit{Code: 2}
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(e.Limits.WallMS)*time.Millisecond)
	defer cancel()
	for b := numbered(n); len(b) > 0; {
		sent, err := s.SendSome(ctx, wire.ChanStdout, b[:min(len(b), 32<<10)])
		exit.StdoutBytes += int64(sent)
		b = b[sent:]
		if err == nil && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
			continue
		}
		exit.Code, exit.Signal, exit.Limit = -1, "SIGKILL", wire.LimitWall
		break
	}
	return &exit
}

// flicker is a guest whose programs print a byte on each stream in turn, so many in all as their first argument says: each is an event.
func flicker(ctx context.Context, conn net.Conn) {
	converse(ctx, conn, func(ctx context.Context, s *wire.Stream, r *wire.Request) wire.Reply {
		if r.Op != wire.OpExec {
			return answer(ctx, s, r)
		}
		n, err := strconv.Atoi(r.Exec.Argv[1])
		for range n / 2 {
			if err = errors.Join(s.Send(ctx, wire.ChanStdout, []byte("o")), s.Send(ctx, wire.ChanStderr, []byte("e"))); err != nil {
				break
			}
		}
		if err != nil {
			return wire.Reply{Error: &wire.Error{Kind: wire.ErrAgent, Message: err.Error()}}
		}
		return wire.Reply{Exit: &wire.Exit{StdoutBytes: int64(n / 2), StderrBytes: int64(n / 2)}}
	})
}
