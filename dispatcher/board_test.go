package dispatcher_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/jobs"
)

// hooks let a test into a ledger's or a board's operations. Nothing is locked while they run.
type hooks struct {
	hooking     sync.Mutex
	first, then func(op string) error
}

// before has f called before each operation; it may refuse that. nil ends it.
func (h *hooks) before(f func(op string) error) {
	h.hooking.Lock()
	defer h.hooking.Unlock()
	h.first = f
}

// after has f called when an operation is done; its error is the caller's, whose answer is lost. nil ends it.
func (h *hooks) after(f func(op string) error) {
	h.hooking.Lock()
	defer h.hooking.Unlock()
	h.then = f
}

func (h *hooks) around(op string, do func() error) error {
	h.hooking.Lock()
	first, then := h.first, h.then
	h.hooking.Unlock()
	if first != nil {
		if err := first(op); err != nil {
			return err
		}
	}
	if err := do(); err != nil || then == nil {
		return err
	}
	return then(op)
}

// board is a dispatcher.Publisher that behaves as JetStream does: an event that it has is not taken again, but it knows a repeat for two
// minutes only. Two events that are one by (job, attempt, seq) and differ are a fault of the test, because viewers would see only one.
type board struct {
	t      *testing.T
	mu     sync.Mutex
	events map[string][]jobs.Event // by job
	dead   map[string][]string     // reasons, by job
	known  map[string]time.Time    // what was stored, and when
	order  []string                // the jobs of all events, as they were stored
	large  map[string]bool         // jobs whose results are more than a message carries
	mute   string                  // the job of whose last event the board does not tell
	hooks
}

var _ dispatcher.Publisher = (*board)(nil)

// knownFor is for how long JetStream drops a repeat.
const knownFor = 2 * time.Minute

func newBoard(t *testing.T) *board {
	return &board{t: t, events: map[string][]jobs.Event{}, dead: map[string][]string{}, known: map[string]time.Time{}}
}

func (b *board) do(op string, change func()) error {
	return b.around(op, func() error {
		b.mu.Lock()
		defer b.mu.Unlock()
		change()
		return nil
	})
}

// repeat tells whether what goes by that id is dropped; b.mu is held.
func (b *board) repeat(id string) bool {
	at, ok := b.known[id]
	if ok && time.Since(at) < knownFor {
		return true
	}
	b.known[id] = time.Now()
	return false
}

func (b *board) Publish(_ context.Context, events ...jobs.Event) error {
	if slices.ContainsFunc(events, func(e jobs.Event) bool { return e.Result != nil && b.large[e.Job] }) {
		return &jobs.Error{Code: jobs.CodeTooLarge, Message: "more than a message carries"}
	}
	return b.do("publish", func() {
		for _, e := range events {
			n := slices.IndexFunc(b.events[e.Job], func(o jobs.Event) bool { return o.Attempt == e.Attempt && o.Seq == e.Seq })
			if n >= 0 {
				if diff := gocmp.Diff(b.events[e.Job][n], e); diff != "" {
					b.t.Errorf("job %s: two events have attempt %d and seq %d (-first +second):\n%s", e.Job, e.Attempt, e.Seq, diff)
				}
			}
			if !b.repeat(fmt.Sprint(e.Job, e.Attempt, e.Seq)) {
				b.events[e.Job] = append(b.events[e.Job], e)
				b.order = append(b.order, e.Job)
			}
		}
	})
}

// LastSeq looks at the job's last event, as the broker does.
func (b *board) LastSeq(ctx context.Context, _, job string, attempt int) (last int64, err error) {
	b.mu.Lock()
	mute := b.mute == job
	b.mu.Unlock()
	if mute {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	err = b.do("last seq", func() {
		if all := b.events[job]; len(all) > 0 && all[len(all)-1].Attempt == attempt {
			last = all[len(all)-1].Seq
		}
	})
	return last, err
}

func (b *board) DeadLetter(_ context.Context, j jobs.Job, reason string) error {
	return b.do("dead letter", func() {
		if !b.repeat("dead " + j.ID) {
			b.dead[j.ID] = append(b.dead[j.ID], reason)
		}
	})
}

// silence has the board not tell of a job's last event; of none where it is empty.
func (b *board) silence(job string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mute = job
}

// of gives a job's events.
func (b *board) of(job string) []jobs.Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.events[job])
}

// finals gives a job's final events.
func (b *board) finals(job string) []jobs.Event {
	return slices.DeleteFunc(b.of(job), func(e jobs.Event) bool { return !e.Final })
}

func (b *board) buried(job string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.dead[job])
}

// link is the board as one life of the dispatcher sees it.
type link struct {
	*board
	around func(op string, do func() error) error
}

func (l link) Publish(ctx context.Context, events ...jobs.Event) error {
	return l.around("publish", func() error { return l.board.Publish(ctx, events...) })
}

func (l link) LastSeq(ctx context.Context, tenant, job string, attempt int) (seq int64, err error) {
	err = l.around("last seq", func() error { seq, err = l.board.LastSeq(ctx, tenant, job, attempt); return err })
	return seq, err
}

func (l link) DeadLetter(ctx context.Context, j jobs.Job, reason string) error {
	return l.around("dead letter", func() error { return l.board.DeadLetter(ctx, j, reason) })
}
