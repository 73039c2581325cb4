package bus_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/jobs"
)

// stored are the events of a job as the stream has them: attempt, seq and content.
func stored(t *testing.T, nc *nats.Conn, job string) (l []string) {
	t.Helper()
	for _, e := range storedEvents(t, nc, job) {
		l = append(l, fmt.Sprintf("%d.%d %.20s", e.Attempt, e.Seq, e.Text+string(e.Type[:1])))
	}
	return l
}

func storedEvents(t *testing.T, nc *nats.Conn, job string) (l []jobs.Event) {
	t.Helper()
	js := bustest.JetStream(t, nc)
	subject := jobs.EventSubject("default", job)
	again(t, "the events of "+job+" are read", func() (err error) {
		l, err = readEvents(t, js, subject)
		return err
	})
	return l
}

// again asks until it is answered: a cluster's servers tell each other of what is new, and whenever they were held up for seconds none of them
// leads for a while.
func again(t *testing.T, what string, ask func() error) {
	t.Helper()
	var err error
	bustest.Eventually(t, what, func() bool {
		err = ask()
		return err == nil
	})
	if err != nil {
		t.Fatal(what+":", err)
	}
}

// readEvents reads all that the stream has on a subject. Where some do not come they are lost to the consumer, which is told nothing of who reads.
func readEvents(t *testing.T, js jetstream.JetStream, subject string) (l []jobs.Event, err error) {
	t.Helper()
	st, err := js.Stream(t.Context(), jobs.StreamEvents)
	if err != nil {
		return nil, err
	}
	// The stream's leader knows how many there are. A consumer is any server's, which may not have them all yet.
	info, err := st.Info(t.Context(), jetstream.WithSubjectFilter(subject))
	if err != nil {
		return nil, err
	}
	c, err := js.CreateConsumer(t.Context(), jobs.StreamEvents, jetstream.ConsumerConfig{FilterSubject: subject, AckPolicy: jetstream.AckNonePolicy})
	if err != nil {
		return nil, err
	}
	for want := int(info.State.Subjects[subject]); len(l) < want; {
		batch, err := c.Fetch(min(want-len(l), 500), jetstream.FetchMaxWait(10*time.Second))
		if err != nil {
			return nil, err
		}
		before := len(l)
		for m := range batch.Messages() {
			var e jobs.Event
			if err := json.Unmarshal(m.Data(), &e); err != nil {
				t.Fatal(err)
			}
			l = append(l, e)
		}
		if err := batch.Error(); err != nil {
			return nil, err
		}
		if len(l) == before {
			return nil, fmt.Errorf("%d of %d came", len(l), want)
		}
	}
	return l, nil
}

// series are the events from seq "from" to seq "to", of one attempt.
func series(job string, attempt int, from, to int64) (l []jobs.Event) {
	for seq := from; seq <= to; seq++ {
		l = append(l, bustest.Event(job, attempt, seq, "x"))
	}
	return l
}

// inOrder fails unless the stream has exactly the events 1 to n of the first attempt.
func inOrder(t *testing.T, nc *nats.Conn, job string, n int) {
	t.Helper()
	events := storedEvents(t, nc, job)
	if len(events) != n {
		t.Fatalf("%d events are stored, want %d", len(events), n)
	}
	for i, e := range events {
		if e.Seq != int64(i+1) {
			t.Fatalf("the event in place %d has seq %d", i+1, e.Seq)
		}
	}
}

func code(err error) jobs.Code {
	if e, ok := errors.AsType[*jobs.Error](err); ok {
		return e.Code
	}
	return ""
}

func TestPublish(t *testing.T) {
	s := bustest.Start(t)
	b, nc := s.Connect(), s.Plain()
	for _, c := range []struct {
		name string
		pubs [][]jobs.Event // job "" is the case's own
		want int
	}{
		{"nothing", nil, 0},
		{"one", [][]jobs.Event{series("", 1, 1, 1)}, 1},
		{"a batch", [][]jobs.Event{series("", 1, 1, 3)}, 3},
		{"the same again", [][]jobs.Event{series("", 1, 1, 3), series("", 1, 1, 3)}, 3},
		{"one again", [][]jobs.Event{series("", 1, 1, 1), series("", 1, 1, 1)}, 1},
		{"a batch of which some is there", [][]jobs.Event{series("", 1, 1, 2), series("", 1, 1, 5)}, 5},
		{"more than one atomic batch", [][]jobs.Event{series("", 1, 1, 2500)}, 2500},
		{"of which a middle is there", [][]jobs.Event{series("", 1, 1, 1100), series("", 1, 1, 2100)}, 2100},
		{"twice in one batch", [][]jobs.Event{append(series("", 1, 1, 2), series("", 1, 2, 3)...)}, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			job := jobs.NewID()
			for _, events := range c.pubs {
				for i := range events {
					events[i].Job = job
				}
				bustest.Publish(t, b, events...)
			}
			inOrder(t, nc, job, c.want)
		})
	}
}

// What many publish at once shares batches, and each is told of its own.
func TestPublishAtOnce(t *testing.T) {
	s := bustest.Start(t)
	b, nc := s.Connect(), s.Plain()
	const n = 40
	ids := make([]string, n)
	var wg sync.WaitGroup
	for i := range n {
		ids[i] = jobs.NewID()
		wg.Go(func() {
			for from := int64(1); from < 30; from += 10 {
				events := series(ids[i], 1, max(from-1, 1), from+9) // each begins with the last of the one before
				bustest.Publish(t, b, events...)
			}
		})
	}
	wg.Wait()
	for _, id := range ids {
		inOrder(t, nc, id, 30)
	}
}

// More than one batch may carry in bytes, with what only HTML would need escaped.
func TestPublishMuch(t *testing.T) {
	s := bustest.Start(t)
	b, nc := s.Connect(), s.Plain()
	job := jobs.NewID()
	events := series(job, 1, 1, 24)
	text := strings.Repeat("<&>\u2028", 200_000)
	for i := range events {
		events[i].Text = text
	}
	bustest.Publish(t, b, events...)
	inOrder(t, nc, job, 24)
	if got := storedEvents(t, nc, job)[23].Text; got != text {
		t.Errorf("the text came back as %.40q…", got)
	}
}

// An event that no message can carry is its publisher's trouble, and nobody else's.
func TestPublishTooLarge(t *testing.T) {
	s := bustest.Start(t)
	b, nc := s.Connect(), s.Plain()
	large := jobs.NewID()
	events := series(large, 1, 1, 3)
	events[1].Text = strings.Repeat("x", 2<<20)
	var wg sync.WaitGroup
	ids := make([]string, 20)
	for i := range ids {
		ids[i] = jobs.NewID()
		wg.Go(func() {
			bustest.Publish(t, b, series(ids[i], 1, 1, 3)...)
		})
	}
	for range 4 {
		wg.Go(func() {
			if err := b.Publish(t.Context(), events...); code(err) != jobs.CodeTooLarge {
				t.Errorf("got %v, want too_large", err)
			}
		})
	}
	wg.Wait()
	for _, id := range ids {
		inOrder(t, nc, id, 3)
	}
	inOrder(t, nc, large, 0)
}

// A bound that somebody gave the stream is met by the server's refusal; the others of the batch are stored.
func TestPublishRefused(t *testing.T) {
	s := bustest.Start(t)
	b, nc := s.Connect(), s.Plain()
	js := bustest.JetStream(t, nc)
	stream, err := js.Stream(t.Context(), jobs.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	cfg := stream.CachedInfo().Config
	cfg.MaxMsgSize = 4096
	if _, err := js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	ids := make([]string, 20)
	for i := range ids {
		ids[i] = jobs.NewID()
		wg.Go(func() {
			bustest.Publish(t, b, series(ids[i], 1, 1, 3)...)
		})
		wg.Go(func() {
			var err error
			bustest.Eventually(t, "the server answers", func() bool {
				err = b.Publish(t.Context(), bustest.Event(jobs.NewID(), 1, 1, strings.Repeat("x", 8192)))
				return code(err) != jobs.CodeUnavailable
			})
			if code(err) != jobs.CodeTooLarge {
				t.Errorf("got %v, want too_large", err)
			}
		})
	}
	wg.Wait()
	for _, id := range ids {
		inOrder(t, nc, id, 3)
	}
}

// One that the server does not answer holds up none but itself: not those with which it came, where the server will not have them together, nor those
// that come later.
func TestPublishBesideTheUnanswered(t *testing.T) {
	s := bustest.Start(t)
	b, nc := s.Connect(), s.Plain()
	if err := bustest.JetStream(t, nc).DeleteStream(t.Context(), jobs.StreamEvents); err != nil {
		t.Fatal(err)
	}
	// What answers in its place takes no batches, and from the first one of several jobs on nothing of the job that comes first there.
	var unanswered atomic.Pointer[string]
	late := make(chan *nats.Msg, 100)
	batches := map[string][]string{}
	answers, err := nc.Subscribe(jobs.EventSubjects, func(m *nats.Msg) {
		if id := m.Header.Get("Nats-Batch-Id"); id != "" {
			batches[id] = append(batches[id], m.Subject)
			if m.Header.Get("Nats-Batch-Commit") == "" {
				return
			}
			if first := batches[id][0]; slices.ContainsFunc(batches[id], func(other string) bool { return other != first }) {
				unanswered.CompareAndSwap(nil, &first)
			}
			_ = m.Respond([]byte(`{"error": {"code": 400, "err_code": 10199, "description": "no batches"}}`))
			return
		}
		if u := unanswered.Load(); u != nil && *u == m.Subject {
			late <- m
			return
		}
		_ = m.Respond([]byte(`{"stream": "EVENTS", "seq": 1}`))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	const n = 20
	stored, gaveUp := make(chan string, n), make(chan error, n)
	for range n {
		go func() {
			job := jobs.NewID()
			for seq, since := int64(1), 0; since < 2; seq += 3 { // the first may be among those that came with it
				before := unanswered.Load()
				err := b.Publish(t.Context(), series(job, 1, seq, seq+2)...)
				switch u := unanswered.Load(); {
				case u != nil && *u == jobs.EventSubject("default", job):
					gaveUp <- err
					return
				case err != nil:
					t.Error(err)
				case before != nil:
					since++
				}
			}
			stored <- job
		}()
	}
	for i := range n - 1 {
		select {
		case <-stored:
		case err := <-gaveUp:
			t.Fatalf("when it is known that one is not answered (%v), %d of %d others are stored", err, i, n-1)
		}
	}
	if err := answers.Unsubscribe(); err != nil {
		t.Fatal(err)
	}
	_ = (<-late).Respond([]byte(`{"error": {"code": 400, "err_code": 10199, "description": "nor this"}}`)) // so that nobody has to wait for its time to be over
	<-gaveUp
}

// forgotten makes the stream forget the ids it knows: what two minutes do, in the time that JetStream needs at least.
func forgotten(t *testing.T, nc *nats.Conn) {
	t.Helper()
	js := bustest.JetStream(t, nc)
	stream, err := js.Stream(t.Context(), jobs.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	cfg := stream.CachedInfo().Config
	cfg.Duplicates = 100 * time.Millisecond
	if _, err := js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	probe := bustest.Event(jobs.NewID(), 1, 1, "probe")
	data, err := json.Marshal(probe)
	if err != nil {
		t.Fatal(err)
	}
	send := func() *jetstream.PubAck {
		m := &nats.Msg{Subject: jobs.EventSubject("default", probe.Job), Data: data, Header: nats.Header{nats.MsgIdHdr: {"probe"}}}
		ack, err := js.PublishMsg(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		return ack
	}
	send()
	bustest.Eventually(t, "the stream forgets", func() bool { return !send().Duplicate })
}

func aged(events []jobs.Event) []jobs.Event {
	for i := range events {
		events[i].Time = events[i].Time.Add(-10 * time.Minute)
	}
	return events
}

// An outbox, or a worker, that tries again after a long time does not store an event twice.
func TestPublishLongAfter(t *testing.T) {
	s := bustest.Start(t)
	b, nc := s.Connect(), s.Plain()
	final := func(attempt int, seq int64) []jobs.Event { return []jobs.Event{bustest.Final("", attempt, seq)} }
	for _, c := range []struct {
		name          string
		before, again []jobs.Event
		want          []string
	}{
		{"never stored", nil, series("", 1, 1, 2), []string{"1.1 xo", "1.2 xo"}},
		{"stored", series("", 1, 1, 2), series("", 1, 1, 2), []string{"1.1 xo", "1.2 xo"}},
		{"partly stored", series("", 1, 1, 2), series("", 1, 1, 3), []string{"1.1 xo", "1.2 xo", "1.3 xo"}},
		{"the end, not stored", series("", 1, 1, 1), final(1, 2), []string{"1.1 xo", "1.2 r"}},
		{"the end, stored", append(series("", 1, 1, 1), final(1, 2)...), final(1, 2), []string{"1.1 xo", "1.2 r"}},
		{"the end, and a late worker had its number", series("", 1, 1, 3), final(1, 2), []string{"1.1 xo", "1.2 xo", "1.3 xo", "1.2 r"}},
		{"another attempt since, stored", append(series("", 1, 1, 2), series("", 2, 1, 1)...), series("", 1, 2, 2), []string{"1.1 xo", "1.2 xo", "2.1 xo"}},
		{"another attempt since, not stored", append(series("", 1, 1, 2), series("", 2, 1, 1)...), series("", 1, 3, 3), []string{"1.1 xo", "1.2 xo", "2.1 xo", "1.3 xo"}},
		{"a new attempt", series("", 1, 1, 2), series("", 2, 1, 1), []string{"1.1 xo", "1.2 xo", "2.1 xo"}},
		{"a late worker since", append(series("", 2, 1, 1), series("", 1, 1, 1)...), series("", 2, 1, 2), []string{"2.1 xo", "1.1 xo", "2.2 xo"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			job := jobs.NewID()
			for _, l := range [][]jobs.Event{c.before, c.again} {
				for i := range l {
					l[i].Job = job
				}
			}
			bustest.Publish(t, b, c.before...)
			forgotten(t, nc)
			bustest.Publish(t, b, aged(c.again)...)
			if diff := cmp.Diff(c.want, stored(t, nc, job)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// While the server is away publishing fails, typed; once it is back the same events go through, each once.
func TestPublishOverRestart(t *testing.T) {
	s := bustest.Start(t)
	b := s.Connect()
	ids := []string{jobs.NewID(), jobs.NewID(), jobs.NewID()}
	bustest.Publish(t, b, series(ids[0], 1, 1, 3)...)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	for _, id := range ids { // all the while, as workers do it
		wg.Go(func() {
			for seq := int64(1); ctx.Err() == nil && seq <= 200; {
				if err := b.Publish(t.Context(), series(id, 1, seq, seq+2)...); err == nil {
					seq += 3
				} else if code(err) != jobs.CodeUnavailable {
					t.Errorf("got %v, want unavailable", err)
					return
				}
			}
		})
	}
	s.Close()
	if err := b.Publish(t.Context(), series(ids[0], 1, 1, 1)...); code(err) != jobs.CodeUnavailable {
		t.Errorf("got %v, want unavailable", err)
	}
	if _, err := b.Has(t.Context(), bustest.Event(ids[0], 1, 1, "x")); code(err) != jobs.CodeUnavailable {
		t.Errorf("got %v, want unavailable", err)
	}
	if err := b.CloseAttempt(t.Context(), bustest.Final(ids[0], 1, 0)); code(err) != jobs.CodeUnavailable {
		t.Errorf("got %v, want unavailable", err)
	}
	s.Restart()
	wg.Wait()
	for _, id := range ids {
		inOrder(t, s.Plain(), id, 201)
	}
}

// What was handed in is stored before Close returns; after it, publishing fails.
func TestPublishAndClose(t *testing.T) {
	s := bustest.Start(t)
	b, nc := s.Connect(), s.Plain()
	var wg sync.WaitGroup
	ids, errs := make([]string, 50), make([]error, 50)
	for i := range ids {
		ids[i] = jobs.NewID()
		wg.Go(func() { errs[i] = b.Publish(context.Background(), series(ids[i], 1, 1, 3)...) })
	}
	b.Close()
	wg.Wait()
	for i, id := range ids {
		switch {
		case errs[i] == nil:
			inOrder(t, nc, id, 3)
		case code(errs[i]) != jobs.CodeUnavailable:
			t.Errorf("got %v, want unavailable", errs[i])
		}
	}
	if err := b.Publish(t.Context(), series(ids[0], 1, 4, 4)...); code(err) != jobs.CodeUnavailable {
		t.Errorf("after Close: got %v, want unavailable", err)
	}
}

// The stream knows for minutes what it has stored. An event of a worker whose clock was ahead then, and was set back, seems to be of now, or of
// a time that has not come, when it is tried again: it is stored once all the same.
func TestPublishedByAClockThatWasAhead(t *testing.T) {
	s := bustest.Start(t)
	b := s.Connect()
	js := bustest.JetStream(t, s.Plain())
	st, err := js.Stream(t.Context(), jobs.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	c := st.CachedInfo().Config
	c.Duplicates = 100 * time.Millisecond // for minutes
	if _, err := js.UpdateStream(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		ahead time.Duration
		again func(context.Context, ...jobs.Event) error
	}{
		"it has not come":                         {time.Hour, b.Publish},
		"it has not come, and was tried":          {time.Hour, b.Republish},
		"it seems to be of now":                   {0, b.Republish},
		"it is as old as it seems, and was tried": {-time.Hour, b.Republish},
	} {
		t.Run(name, func(t *testing.T) {
			job := jobs.NewID()
			e := []jobs.Event{bustest.Event(job, 1, 1, "x"), bustest.Event(job, 1, 2, "y")}
			for i := range e {
				e[i].Time = e[i].Time.Add(tt.ahead)
			}
			bustest.Publish(t, b, e...)
			time.Sleep(300 * time.Millisecond) // the stream forgets
			all := append(e, bustest.Event(job, 1, 3, "z"))
			if err := tt.again(t.Context(), all...); code(err) == jobs.CodeUnavailable {
				again(t, "the events are stored", func() error { return b.Republish(t.Context(), all...) })
			} else if err != nil {
				t.Fatal(err)
			}
			i, err := st.Info(t.Context(), jetstream.WithSubjectFilter(jobs.EventSubject("default", job)))
			if err != nil {
				t.Fatal(err)
			}
			if n := i.State.Subjects[jobs.EventSubject("default", job)]; n != 3 {
				t.Errorf("%d events are stored, want 3", n)
			}
		})
	}
}
