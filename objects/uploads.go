package objects

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/paddockvm/paddock/jobs"
)

// Uploads gathers objects that come in pieces, from those who cannot reach the store, each in a file until it is whole and has the digest
// that it was said to have. An upload has no name but the digest: who comes again after an answer was lost, or after a restart, goes on
// where it was, and two who bring the same share the work. What was gathered is lost with Run's end; then the store has nothing of it, and
// the next Uploads tells its clients to begin again.
type Uploads struct {
	store  Store
	dir    string
	within time.Duration
	ctx    context.Context //nolint:containedctx // Run's, for what is stored beyond the request that brought the last piece
	stop   context.CancelFunc

	room int64 // on the disk, for all

	mu      sync.Mutex
	uploads map[key]*upload
	tenants map[string]*held
	shared  int64  // bytes that have come, of what all share
	last    int64  // the same of what is for one after the other
	begun   uint64 // uploads so far
	storing sync.WaitGroup
	closed  bool
}

// key is what an upload is known by.
type key struct{ tenant, digest string }

// NewUploads gives one that gathers in a directory, which has to be there; empty is the system's for temporary files. Whoever brings the last
// piece is let wait for within until the object is stored. Run has to be called.
func NewUploads(store Store, dir string, within time.Duration) *Uploads {
	u := &Uploads{store: store, dir: dir, within: within, room: maxGatheredAll, uploads: map[key]*upload{}, tenants: map[string]*held{}}
	u.ctx, u.stop = context.WithCancel(context.Background())
	return u
}

// Run forgets uploads that were abandoned, until ctx ends, and then all.
func (u *Uploads) Run(ctx context.Context) error {
	t := time.NewTicker(abandonedAfter / 10)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			u.mu.Lock()
			u.forget(ctx, time.Now().Add(-abandonedAfter), nil)
			u.mu.Unlock()
		case <-ctx.Done():
			u.stop()
			u.mu.Lock()
			u.closed = true
			u.mu.Unlock()
			u.storing.Wait()
			u.mu.Lock()
			u.forget(ctx, time.Now(), nil)
			u.mu.Unlock()
			return nil
		}
	}
}

// Put takes a piece of an object that will have size bytes and a digest. An empty one asks how far it is, and begins nothing. stored says
// that the object is in the store, and as new; until then next is the first byte that is missing. Whoever brings the last piece waits a while
// until the object is stored, and so does who asks when all is there; without an error, next is the size then and stored false where it took
// longer: ask again. Pieces may come in any order and repeatedly. An error of the store that may pass keeps what was gathered: asking again
// tries again. What the store refuses is forgotten when somebody has been told.
func (u *Uploads) Put(ctx context.Context, tenant, digest string, size, offset int64, piece []byte) (next int64, stored bool, err error) {
	if size > jobs.MaxObjectBytes {
		return 0, false, &jobs.Error{Code: jobs.CodeTooLarge, Message: fmt.Sprintf("the object has %d bytes, and may have %d", size, jobs.MaxObjectBytes)}
	}
	if offset < 0 || offset+int64(len(piece)) > size {
		return 0, false, &jobs.Error{Code: jobs.CodeInvalid, Message: "invalid request", Faults: []jobs.Fault{{Path: "offset", Message: "the piece reaches beyond the size"}}}
	}
	k := key{tenant, digest}
	up, err := u.find(k)
	if up == nil && err == nil {
		_, err = u.store.Renew(ctx, tenant, digest)
		switch {
		case err == nil:
			return size, true, nil
		case !isNotFound(err):
			return 0, false, err
		case len(piece) == 0 && size > 0:
			return 0, false, nil
		}
		up, err = u.begin(k, size)
	}
	if err != nil {
		return 0, false, err
	}
	if up.size != size {
		return 0, false, &jobs.Error{Code: jobs.CodeConflict, Message: fmt.Sprintf("another says that the object of this digest has %d bytes", up.size)}
	}
	next, whole, err := u.write(ctx, k, up, offset, piece)
	if err != nil || !whole {
		return next, false, err
	}
	return u.finish(ctx, k, up)
}

func (u *Uploads) find(k key) (*upload, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return nil, stopping()
	}
	return u.uploads[k], nil
}

func stopping() *jobs.Error {
	return &jobs.Error{Code: jobs.CodeUnavailable, Message: "this dispatcher stops", RetryAfterMS: 1000}
}

// begin opens an upload, unless another has meanwhile.
func (u *Uploads) begin(k key, size int64) (*upload, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if up := u.uploads[k]; up != nil {
		return up, nil
	}
	if u.closed {
		return nil, stopping()
	}
	if err := u.admit(k.tenant, size); err != nil {
		return nil, err
	}
	up, err := newUpload(u.dir, size)
	if err != nil {
		return nil, err
	}
	u.begun++
	up.begun = u.begun
	u.uploads[k] = up
	h := u.tenants[k.tenant]
	if h == nil {
		h = &held{}
		u.tenants[k.tenant] = h
	}
	h.uploads, h.declared = h.uploads+1, h.declared+size
	return up, nil
}

// finish has an upload stored that is whole, and waits a while for it.
func (u *Uploads) finish(ctx context.Context, k key, up *upload) (next int64, stored bool, err error) {
	u.mu.Lock()
	if u.closed {
		u.mu.Unlock()
		return 0, false, stopping()
	}
	if up.storing == nil && u.uploads[k] != up {
		u.mu.Unlock()
		return 0, false, lost()
	}
	if up.storing == nil {
		o := &outcome{done: make(chan struct{})}
		up.storing = o
		u.storing.Go(func() { u.keep(k, up, o) })
	}
	o := up.storing
	u.mu.Unlock()
	waiting, cancel := context.WithTimeout(ctx, u.within)
	defer cancel()
	select {
	case <-o.done:
		if refused(o.err) {
			u.mu.Lock()
			u.drop(k, up)
			u.mu.Unlock()
		}
		return up.size, o.err == nil, o.err
	case <-waiting.Done():
		return up.size, false, nil // who asks again waits again
	}
}

// keep stores an upload that is whole. What is refused stays until somebody has heard so: nobody may be waiting in this moment.
func (u *Uploads) keep(k key, up *upload, o *outcome) {
	defer close(o.done)
	o.err = u.store.PutAs(u.ctx, k.tenant, k.digest, up.size, up.file)
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case o.err == nil:
		u.drop(k, up)
	case refused(o.err):
		up.touched = time.Now()
	default:
		up.storing, up.touched = nil, time.Now() // it is tried again when somebody asks
	}
}

// refused tells whether an error of the store says that the object, as it is, will not be stored.
func refused(err error) bool {
	e, ok := errors.AsType[*jobs.Error](err)
	return ok && (e.Code == jobs.CodeInvalid || e.Code == jobs.CodeQuota)
}
