package bus

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/paddockvm/paddock/bus/access"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/objects"
)

// Where S3 keeps objects, workers have no key of it: for each object they ask their dispatcher, who gives a URL that is good for that one,
// for an hour. So a worker that is taken over can reach what its jobs name, and nothing has to be told to workers but where the dispatcher
// is; while what is large goes between worker and S3, not by the dispatcher. Where it is JetStream they are told that.

// lendRequest asks to be let at an object.
type lendRequest struct {
	Worker string `json:"worker"`
	Tenant string `json:"tenant"`
	Op     string `json:"op"` // get, put, or where: only where objects are kept
	SHA256 string `json:"sha256,omitempty"`
	Size   int64  `json:"size,omitempty"`
}

// lendReply answers one. Put gets nothing where the object is there already.
type lendReply struct {
	JetStream bool             `json:"jetstream,omitempty"`
	Granted   *objects.Granted `json:"granted,omitempty"`
	Error     *jobs.Error      `json:"error,omitempty"`
}

// lend lets a worker at an object.
func (s *serving) lend(ctx context.Context, m *nats.Msg) any {
	q, err := read[lendRequest](m)
	if err == nil {
		err = itself(m, q.Worker)
	}
	if err == nil {
		err = s.errorOf(jobs.ValidTenant(q.Tenant))
	}
	if err != nil {
		return failure{err}
	}
	store, ok := s.bus.store.(*objects.S3)
	if !ok {
		return lendReply{JetStream: true}
	}
	var r lendReply
	var lendErr error
	switch q.Op {
	case "get":
		r.Granted, lendErr = store.GetURL(ctx, q.Tenant, q.SHA256)
	case "put":
		r.Granted, lendErr = store.PutURL(ctx, q.Tenant, q.SHA256, q.Size)
	case "where":
	default:
		lendErr = &jobs.Error{Code: jobs.CodeInvalid, Message: "nothing is asked of the object"}
	}
	if lendErr != nil {
		return failure{s.errorOf(ofObjects(lendErr))}
	}
	return r
}

const (
	// jetStreamFor is how long a worker believes that it is JetStream that keeps objects.
	jetStreamFor = time.Minute
	// lendTries and lendPause are how long a worker waits for a dispatcher to say where they are kept, or to make a bucket: another begins to
	// lead, or an answer is lost.
	lendTries  = 15
	lendPause  = time.Second
	lendWithin = 15 * time.Second // each
)

// lent is a worker's way to objects.
type lent struct {
	bus  *Bus
	js   *objects.JetStream
	name string

	mu sync.Mutex
	at time.Time // it was JetStream then
}

// ask asks to be let at an object. What a dispatcher has said before holds while none answers.
func (l *lent) ask(ctx context.Context, q lendRequest) (r lendReply, err error) {
	l.mu.Lock()
	at := l.at
	l.mu.Unlock()
	if time.Since(at) < jetStreamFor {
		return lendReply{JetStream: true}, nil
	}
	q.Worker = l.name
	for try := 0; ; try++ {
		asking, cancel := context.WithTimeout(ctx, lendWithin)
		r, _, err = ask[lendReply](asking, l.bus, l.bus.fleet(access.LendSubject), q)
		cancel()
		switch {
		case err == nil:
		case !at.IsZero():
			return lendReply{JetStream: true}, nil
		case ctx.Err() == nil && try < lendTries:
			pause(ctx, lendPause)
			continue
		}
		break
	}
	if err == nil && r.Error != nil {
		err = r.Error
	}
	if r.JetStream {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.at = time.Now()
	}
	return r, err
}

func (l *lent) get(ctx context.Context, tenant string, ref jobs.ObjectRef) (io.ReadCloser, error) {
	r, err := l.ask(ctx, lendRequest{Tenant: tenant, Op: "get", SHA256: ref.SHA256})
	switch {
	case err != nil:
		return nil, err
	case r.JetStream:
		return l.js.Get(ctx, tenant, ref.Name)
	case r.Granted == nil:
		return nil, &jobs.Error{Code: jobs.CodeInternal, Message: "the dispatcher's answer says nothing of the object"}
	}
	return r.Granted.Get(ctx)
}

// put gathers the object in a file where it goes to S3: it is asked for by its digest.
func (l *lent) put(ctx context.Context, tenant string, from io.Reader) (ref jobs.ObjectRef, err error) {
	r, err := l.ask(ctx, lendRequest{Tenant: tenant, Op: "where"})
	if err != nil {
		return ref, err
	}
	if r.JetStream {
		return l.js.Put(ctx, tenant, from)
	}
	f, size, sum, err := objects.Gather(l.bus.spool, from)
	if err != nil {
		return ref, err
	}
	defer f.Close() // it has no name
	r, err = l.ask(ctx, lendRequest{Tenant: tenant, Op: "put", SHA256: sum, Size: size})
	if err == nil && r.JetStream {
		return l.js.Put(ctx, tenant, f)
	}
	if err == nil && r.Granted != nil {
		err = r.Granted.Put(ctx, f, size)
	}
	return jobs.ObjectRef{Name: sum, SHA256: sum}, err
}
