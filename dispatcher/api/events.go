package api

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/paddockvm/paddock/jobs"
)

// events answers GET /v1/jobs/{id}/events.
func (s *Server) events(w http.ResponseWriter, r *http.Request) error {
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		return refuse(http.StatusMethodNotAllowed, jobs.CodeInvalid, "events are read with GET")
	}
	tenant, grant, err := s.admit(r)
	if err != nil {
		return err
	}
	after, err := position(r)
	if err != nil {
		return err
	}
	job := r.PathValue("id")
	if _, err := jobs.ParseID(job); err != nil {
		return &jobs.Error{Code: jobs.CodeNotFound, Message: fmt.Sprintf("no job %.80q", job)}
	}
	ctx, end := context.WithCancel(r.Context())
	defer end()
	if !grant.Until.IsZero() {
		ctx, end = context.WithDeadline(ctx, grant.Until)
		defer end()
	}
	v := &viewer{tenant, grant, end}
	if err := s.enter(v); err != nil {
		return err
	}
	defer s.leave(v)
	if !v.holds() {
		return errNobody
	}
	over, err := s.seenAll(ctx, tenant, job, after, r.Header.Get(lastEventID) != "")
	if err != nil && ctx.Err() != nil && r.Context().Err() == nil { // the grant has ended meanwhile
		return errNobody
	}
	if err != nil {
		return err
	}
	if over { // an EventSource asks again when a response has ended, unless it gets this
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	s.stream(ctx, w, tenant, job, after)
	return nil
}

// lastEventID is the header of who comes back.
const lastEventID = "Last-Event-ID"

const (
	// backWithin is how long who comes back waits for somebody to answer: for an EventSource an error is the end, and a dispatcher that
	// starts needs a moment.
	backWithin = 10 * time.Second
	askAgain   = 200 * time.Millisecond
)

// seenAll tells whether the position is that of the job's final event; it is an error where there is no such job, or nobody answers. So that is
// known before anything of the job has been written, which may be hours later.
func (s *Server) seenAll(ctx context.Context, tenant, job string, after jobs.Position, back bool) (bool, error) {
	before := after
	before.Seq = max(0, after.Seq-1)
	for begun := time.Now(); ; {
		r, err := s.c.Source.Replay(ctx, tenant, jobs.ReplayRequest{Job: job, After: before, Limit: 1})
		switch e, _ := errors.AsType[*jobs.Error](err); {
		case back && e != nil && e.Code == jobs.CodeUnavailable && time.Since(begun) < backWithin && pause(ctx, askAgain):
			continue
		case err != nil || len(r.Events) == 0:
			return false, err
		}
		e := r.Events[0]
		return e.Final && e.Attempt == after.Attempt && e.Seq == after.Seq, nil
	}
}

// pause gives false where ctx has ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// keepAlive is how long nothing is written at most: proxies end connections on which nothing happens, often after a minute, and a write is how
// it is noticed that nobody is there any more.
const keepAlive = 15 * time.Second

// told is one event, or why there are no more.
type told struct {
	event jobs.Event
	err   error
}

// stream writes events as they come, to the final one, or until ctx ends or nobody takes them. A viewer who takes his time holds up the
// Source's iterator, and nobody else.
func (s *Server) stream(ctx context.Context, w http.ResponseWriter, tenant, job string, after jobs.Position) {
	ctx, cancel := context.WithCancel(ctx)
	next := make(chan told)
	var following sync.WaitGroup
	following.Go(func() {
		defer close(next)
		for e, err := range s.c.Source.Follow(ctx, tenant, job, after) {
			select {
			case next <- told{e, err}:
			case <-ctx.Done():
				return
			}
		}
	})
	defer following.Wait()
	defer cancel()
	headers(w, "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would wait until it has some KiB
	out := newWriter(w, s.writeWithin)
	// Whoever is cut off together does not come back together.
	if out.retry(time.Second+rand.N(2*time.Second)) != nil {
		return
	}
	quiet := time.NewTimer(keepAlive)
	defer quiet.Stop()
	for {
		var err error
		select {
		case t, more := <-next:
			if !more {
				return
			}
			if t.err != nil { // it is asked again, and then told with a status
				s.c.Log.Debug().Err(t.err).Str("job", job).Str("tenant", tenant).Msg("http: a stream ends")
				return
			}
			if err = out.event(&t.event); t.event.Final {
				return
			}
		case <-quiet.C:
			err = out.comment()
		case <-ctx.Done():
			return
		}
		if err != nil {
			s.c.Log.Debug().Err(err).Str("job", job).Str("tenant", tenant).Msg("http: nobody reads a stream any more")
			return
		}
		quiet.Reset(keepAlive)
	}
}

// position reads which event was the last that was seen: by the header, which an EventSource sends by itself, or by the query.
func position(r *http.Request) (p jobs.Position, _ error) {
	q := r.URL.Query()
	for _, name := range slices.Sorted(maps.Keys(q)) {
		if name != "after" && name != "tenant" {
			return p, invalid(name, "is not known here; after and tenant are")
		}
	}
	from, id := lastEventID, r.Header.Get(lastEventID)
	if id == "" {
		from, id = "after", q.Get("after")
	}
	if id == "" {
		return p, nil
	}
	p, ok := parseID(id)
	if !ok {
		return p, invalid(from, fmt.Sprintf("is %.80q, must be the id of an event, ATTEMPT.SEQ, like 1.42", id))
	}
	return p, nil
}

func invalid(path, message string) error {
	return &jobs.Error{Code: jobs.CodeInvalid, Message: "invalid request", Faults: []jobs.Fault{{Path: path, Message: message}}}
}

// eventID is an event's place as server-sent events have it.
func eventID(attempt int, seq int64) string {
	return strconv.Itoa(attempt) + "." + strconv.FormatInt(seq, 10)
}

func parseID(id string) (p jobs.Position, ok bool) {
	a, s, _ := strings.Cut(id, ".")
	attempt, err := strconv.ParseInt(a, 10, 32)
	if err != nil {
		return p, false
	}
	seq, err := strconv.ParseInt(s, 10, 64)
	if err != nil || attempt < 0 || seq < 0 || seq == math.MaxInt64 || eventID(int(attempt), seq) != id {
		return p, false
	}
	return jobs.Position{Attempt: int(attempt), Seq: seq}, true
}
