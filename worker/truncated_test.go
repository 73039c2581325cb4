package worker_test

import (
	"bytes"
	"context"
	"net"
	"testing"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/guestagent/wire"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/vmm/inproc"
	"github.com/paddockvm/paddock/worker"
)

// overflow is a guest whose programs print two-byte letters on both streams, a chunk on each in turn, up to the limit of each, which may cut
// a letter in two; one byte of stdout and seven of stderr are beyond it.
func overflow(ctx context.Context, conn net.Conn) {
	converse(ctx, conn, func(ctx context.Context, s *wire.Stream, r *wire.Request) wire.Reply {
		if r.Op != wire.OpExec {
			return answer(ctx, s, r)
		}
		limit := int(r.Exec.Limits.OutputBytes)
		for at := 0; at < limit; {
			b := letters(limit)[at:min(at+10_001, limit)]
			if s.Send(ctx, wire.ChanStdout, b) != nil || s.Send(ctx, wire.ChanStderr, b) != nil {
				break
			}
			at += len(b)
		}
		return wire.Reply{Exit: &wire.Exit{
			Code: -1, Signal: "SIGKILL", Limit: wire.LimitStdout, StdoutBytes: int64(limit), StderrBytes: int64(limit), StdoutDropped: 1, StderrDropped: 7,
		}}
	})
}

func letters(n int) []byte { return bytes.Repeat([]byte("é"), n/2+1)[:n] }

// truncated holds a step's events to what a viewer is promised of output that passed its limit: the stream up to the limit, then the mark, and
// nothing of that stream after it; the step's end comes after both marks.
func truncated(t *testing.T, events []jobs.Event, limit int) {
	t.Helper()
	out, marked, ended := map[string][]byte{}, map[string]bool{}, false
	for i, e := range events {
		if e.Seq != int64(i+1) {
			t.Errorf("event %d has the number %d", i+1, e.Seq)
		}
		if r := e.StepResult; r != nil {
			ended = true
			if !marked[jobs.Stdout] || !marked[jobs.Stderr] {
				t.Errorf("the step ends before its streams' marks: %v", marked)
			}
			for name, o := range map[string]jobs.Output{jobs.Stdout: r.Stdout, jobs.Stderr: r.Stderr} {
				if want := map[string]int64{jobs.Stdout: 1, jobs.Stderr: 7}[name]; !o.Truncated || o.Bytes != int64(limit) || o.DroppedBytes != want {
					t.Errorf("%s: %d bytes and %d dropped, truncated %t; want %d and %d", name, o.Bytes, o.DroppedBytes, o.Truncated, limit, want)
				}
			}
		}
		if e.Type != jobs.EventOutput {
			continue
		}
		data := e.Data()
		switch {
		case marked[e.Stream]:
			t.Errorf("event %d of %s comes after its mark, with %d bytes", e.Seq, e.Stream, len(data))
		case e.Offset != int64(len(out[e.Stream])):
			t.Errorf("event %d of %s is of offset %d after %d bytes", e.Seq, e.Stream, e.Offset, len(out[e.Stream]))
		case e.Truncated && len(data) > 0:
			t.Errorf("the mark of %s has %d bytes", e.Stream, len(data))
		}
		out[e.Stream], marked[e.Stream] = append(out[e.Stream], data...), e.Truncated
	}
	if !ended {
		t.Error("the step's end is missing")
	}
	for _, name := range []string{jobs.Stdout, jobs.Stderr} {
		if !bytes.Equal(out[name], letters(limit)) {
			t.Errorf("%s has %d bytes, or others than the first %d that were printed", name, len(out[name]), limit)
		}
	}
}

// TestTruncated: a program prints more than its limit; the worker marks where, once for each stream.
func TestTruncated(t *testing.T) {
	for name, limit := range map[string]int{"between letters": 100_000, "in a letter": 99_999} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.cfg.Driver = inproc.New(overflow)
			r.run(t)
			s := steps([]string{"overflow"}, []string{"never"})
			s.Limits.OutputBytes = int64(limit)
			l := r.put(s)
			if res := r.report(t, l.Job).Result; res.Ending != jobs.OutputLimit || res.Class != jobs.ClassUser || len(res.Steps) != 1 {
				t.Errorf("ended %s with %d steps", res.Ending, len(res.Steps))
			}
			truncated(t, r.board.of(l.Job), limit)
		})
	}
}

// TestTruncatedFollowed: who follows the job from its beginning gets the marks, over a real NATS server, and so does who comes after its end.
func TestTruncatedFollowed(t *testing.T) {
	const limit = 99_999
	f := newRealFleet(t)
	c, err := client.Connect(f.nats.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	follow := func(job string) (l []jobs.Event) {
		for e, err := range c.Follow(t.Context(), job, client.Position{}) {
			if err != nil {
				t.Error("follow:", err)
			}
			l = append(l, e)
		}
		return l
	}
	s := steps([]string{"overflow"})
	s.Limits.OutputBytes = limit
	job := f.submit(s)
	live := make(chan []jobs.Event, 1)
	go func() { live <- follow(job) }()
	f.work(func(c *worker.Config) { c.Driver = inproc.New(overflow) })
	for who, events := range map[string][]jobs.Event{"who was there": <-live, "who comes late": follow(job)} {
		t.Run(who, func(t *testing.T) {
			truncated(t, events, limit)
			if last := events[len(events)-1]; !last.Final || last.Result.Ending != jobs.OutputLimit {
				t.Errorf("the last event is %+v", last)
			}
		})
	}
}
