package dispatcher_test

import (
	"context"
	"errors"
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
	closed map[string]bool         // events that CloseAttempt has numbered
	mute   map[string]bool         // jobs of which the board neither takes an attempt's end nor tells
	refuse map[string]bool         // jobs of which the board takes no event, nor any that come with one
	steps  map[string][]jobs.Batch // by batch
	hooks
}

var _ dispatcher.Publisher = (*board)(nil)

// knownFor is for how long JetStream drops a repeat.
const knownFor = 2 * time.Minute

func newBoard(t *testing.T) *board {
	return &board{t: t, events: map[string][]jobs.Event{}, dead: map[string][]string{}, known: map[string]time.Time{}, closed: map[string]bool{}, steps: map[string][]jobs.Batch{}}
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
	b.mu.Lock()
	refused := slices.ContainsFunc(events, func(e jobs.Event) bool { return b.refuse[e.Job] })
	b.mu.Unlock()
	if refused {
		return errors.New("refused")
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

// CloseAttempt numbers the event by what is there.
func (b *board) CloseAttempt(ctx context.Context, e jobs.Event) error {
	if err := b.heard(ctx, e.Job); err != nil {
		return err
	}
	if e.Result != nil && b.large[e.Job] {
		return &jobs.Error{Code: jobs.CodeTooLarge, Message: "more than a message carries"}
	}
	return b.do("close attempt", func() {
		e.Seq = 1
		for _, o := range b.events[e.Job] {
			if o.Attempt == e.Attempt {
				e.Seq = max(e.Seq, o.Seq+1)
			}
		}
		b.closed[fmt.Sprint(e.Job, e.Attempt, e.Seq)] = true
		b.events[e.Job] = append(b.events[e.Job], e)
		b.order = append(b.order, e.Job)
	})
}

// Has looks at all of the job's events.
func (b *board) Has(ctx context.Context, e jobs.Event) (has bool, err error) {
	if err := b.heard(ctx, e.Job); err != nil {
		return false, err
	}
	err = b.do("has", func() {
		has = slices.ContainsFunc(b.events[e.Job], func(o jobs.Event) bool {
			switch {
			case e.Final || o.Final:
				return e.Final && o.Final
			case e.Seq == 0:
				return o.Attempt == e.Attempt && b.closed[fmt.Sprint(o.Job, o.Attempt, o.Seq)]
			}
			return o.Attempt == e.Attempt && o.Seq == e.Seq
		})
	})
	return has, err
}

// heard does not return before ctx ends, where the board is silent about a job.
func (b *board) heard(ctx context.Context, job string) error {
	b.mu.Lock()
	mute := b.mute[job]
	b.mu.Unlock()
	if mute {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func (b *board) DeadLetter(_ context.Context, j jobs.Job, reason string) error {
	return b.do("dead letter", func() {
		if !b.repeat("dead " + j.ID) {
			b.dead[j.ID] = append(b.dead[j.ID], reason)
		}
	})
}

// silence has the board be silent about jobs, and about no others any more.
func (b *board) silence(ids ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mute = map[string]bool{}
	for _, id := range ids {
		b.mute[id] = true
	}
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

func (l link) CloseAttempt(ctx context.Context, e jobs.Event) error {
	return l.around("close attempt", func() error { return l.board.CloseAttempt(ctx, e) })
}

func (l link) Has(ctx context.Context, e jobs.Event) (has bool, err error) {
	err = l.around("has", func() error { has, err = l.board.Has(ctx, e); return err })
	return has, err
}

func (l link) DeadLetter(ctx context.Context, j jobs.Job, reason string) error {
	return l.around("dead letter", func() error { return l.board.DeadLetter(ctx, j, reason) })
}

// Progress implements dispatcher.Publisher.
func (b *board) Progress(_ context.Context, batch jobs.Batch) error {
	return b.do("progress", func() { b.steps[batch.ID] = append(b.steps[batch.ID], batch) })
}

// batchEnds counts how often the end of a batch was told.
func (b *board) batchEnds(id string) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	last := 0
	for _, batch := range b.steps[id] {
		if batch.Ended < last {
			b.t.Errorf("batch %s goes back from %d to %d", id, last, batch.Ended)
		}
		last = batch.Ended
		if !batch.EndedAt.IsZero() {
			n++
		}
	}
	return n
}

// told gives how many of a batch's jobs viewers were last told to have ended.
func (b *board) told(id string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if steps := b.steps[id]; len(steps) > 0 {
		return steps[len(steps)-1].Ended
	}
	return 0
}

// refuses has the board refuse the events of jobs, and of no others any more.
func (b *board) refuses(ids ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refuse = map[string]bool{}
	for _, id := range ids {
		b.refuse[id] = true
	}
}
