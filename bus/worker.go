package bus

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/paddockvm/paddock/jobs"
)

// ask is one request to the dispatcher.
func ask[R any](ctx context.Context, b *Bus, subject string, request any) (r R, err error) {
	data, err := json.Marshal(request)
	if err != nil {
		return r, err
	}
	m, err := b.nc.RequestWithContext(ctx, subject, data)
	if err != nil {
		if errors.Is(err, nats.ErrNoResponders) {
			return r, unavailable("no dispatcher answers", err)
		}
		return r, unavailable("ask the dispatcher", err)
	}
	if err := json.Unmarshal(m.Data, &r); err != nil {
		return r, fmt.Errorf("the dispatcher's answer: %w", err)
	}
	return r, nil
}

// Lease asks the dispatcher for attempts.
func (b *Bus) Lease(ctx context.Context, r jobs.LeaseRequest) (jobs.LeaseReply, error) {
	return ask[jobs.LeaseReply](ctx, b, jobs.LeaseSubject, r)
}

// Beat sends a worker's heartbeat.
func (b *Bus) Beat(ctx context.Context, r jobs.Beat) (jobs.BeatReply, error) {
	return ask[jobs.BeatReply](ctx, b, jobs.HeartbeatSubject, r)
}

// Report sends an attempt's result.
func (b *Bus) Report(ctx context.Context, r jobs.Report) (jobs.ReportReply, error) {
	return ask[jobs.ReportReply](ctx, b, jobs.ReportSubject, r)
}

// OpenStdin takes a job's input: when it has returned no chunk is lost any more. serve writes the chunks into w as they come, until
// ctx ends. Each is answered once w has taken it: that is the back-pressure. At the input's end w is closed.
func (b *Bus) OpenStdin(ctx context.Context, tenant, job string, w io.WriteCloser) (serve func(), err error) {
	chunks := make(chan *nats.Msg, 64)
	sub, err := b.nc.ChanSubscribe(jobs.StdinSubject(tenant, job), chunks)
	if err != nil {
		return nil, unavailable("take stdin", err)
	}
	flush, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	if err := b.nc.FlushWithContext(flush); err != nil {
		return nil, errors.Join(unavailable("take stdin", err), sub.Unsubscribe())
	}
	return func() {
		defer sub.Unsubscribe() //nolint:errcheck // the connection's end does it too
		serveStdin(ctx, chunks, w)
	}, nil
}

func serveStdin(ctx context.Context, chunks <-chan *nats.Msg, w io.WriteCloser) {
	closed := false
	for {
		select {
		case <-ctx.Done():
			return
		case m := <-chunks:
			var c jobs.StdinChunk
			r := jobs.StdinReply{Error: read(m, &c)}
			if r.Error == nil && closed {
				r.Error = &jobs.Error{Code: jobs.CodeConflict, Message: "the input has ended"}
			}
			if r.Error == nil && c.Len() > 0 {
				if _, err := w.Write(c.Data()); err != nil {
					closed = true
					r.Error = &jobs.Error{Code: jobs.CodeConflict, Message: "the program takes no more input"}
				}
			}
			if r.Error == nil && c.EOF {
				closed = true
				_ = w.Close() // a pipe
			}
			reply(m, &r)
		}
	}
}

// bucket gives a tenant's object store, and makes it where it is missing.
func (b *Bus) bucket(ctx context.Context, tenant string) (jetstream.ObjectStore, error) {
	b.mu.Lock()
	o := b.buckets[tenant]
	b.mu.Unlock()
	if o != nil {
		return o, nil
	}
	o, err := b.js.CreateOrUpdateObjectStore(ctx, jetstream.ObjectStoreConfig{Bucket: jobs.ObjectBucket(tenant), TTL: 7 * 24 * time.Hour})
	if err != nil {
		return nil, unavailable("open the object store", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buckets[tenant] = o
	return o, nil
}

// GetObject reads an object. It is the caller who checks the digest.
func (b *Bus) GetObject(ctx context.Context, tenant string, ref jobs.ObjectRef) (io.ReadCloser, error) {
	o, err := b.bucket(ctx, tenant)
	if err != nil {
		return nil, err
	}
	r, err := o.Get(ctx, ref.Name)
	if errors.Is(err, jetstream.ErrObjectNotFound) {
		return nil, &jobs.Error{Code: jobs.CodeNotFound, Message: fmt.Sprintf("no object %q in %s", ref.Name, jobs.ObjectBucket(tenant))}
	}
	if err != nil {
		return nil, unavailable("read object", err)
	}
	return r, nil
}

// PutObject stores an object under its content's digest.
func (b *Bus) PutObject(ctx context.Context, tenant string, r io.Reader) (jobs.ObjectRef, error) {
	o, err := b.bucket(ctx, tenant)
	if err != nil {
		return jobs.ObjectRef{}, err
	}
	h := sha256.New()
	tmp := "tmp-" + nuid.Next() // the name is known when all has been read
	if _, err := o.Put(ctx, jetstream.ObjectMeta{Name: tmp}, io.TeeReader(r, h)); err != nil {
		return jobs.ObjectRef{}, unavailable("write object", err)
	}
	sum := hex.EncodeToString(h.Sum(nil))
	ref := jobs.ObjectRef{Name: sum, SHA256: sum}
	if _, err := o.GetInfo(ctx, sum); err == nil {
		return ref, o.Delete(ctx, tmp) // it was there
	}
	if err := o.UpdateMeta(ctx, tmp, jetstream.ObjectMeta{Name: sum}); err != nil {
		return jobs.ObjectRef{}, errors.Join(unavailable("name object", err), o.Delete(ctx, tmp))
	}
	return ref, nil
}
