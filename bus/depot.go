package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/objects"
)

const (
	// objectsAtOnce bounds the memory that pieces of objects take; further ones wait for their tenant's turn.
	objectsAtOnce = 32
	// storedWithin is how long the one who brings an object's last piece is let wait until it is stored, and then asks again.
	storedWithin = 100 * time.Millisecond
	// pieceUnit is what pieces are whole multiples of, where they are not the last: JetStream's chunks have as much.
	pieceUnit = 128 << 10
)

// depot gives objects to tenants, who have no rights in JetStream, and takes them, piece by piece. It has a connection of its own: what has
// a mebibyte would hold up heartbeats.
type depot struct {
	conn    *conn
	store   objects.Store
	uploads *objects.Uploads
	brain   Brain
}

func (b *Bus) openDepot(brain Brain) (*depot, error) {
	nc, err := b.nc.another("objects")
	if err != nil {
		return nil, err
	}
	d := &depot{conn: nc, store: b.store, brain: brain}
	if _, ours := b.store.(*objects.JetStream); ours {
		if d.store, err = storeOf(nc); err != nil {
			nc.Close()
			return nil, err
		}
	}
	d.uploads = objects.NewUploads(d.store, b.spool, storedWithin)
	return d, nil
}

// objects answers what is asked of objects of the subject's tenant: of those that are named by their digest, and what its jobs name.
func (s *serving) objects(ctx context.Context, m *nats.Msg) any {
	tenant := token(m.Subject, 3)
	op := map[string]func(context.Context, string, *nats.Msg) (jobs.ObjectReply, error){
		"stat": s.depot.stat, "put": s.depot.put, "get": s.depot.get,
	}[token(m.Subject, 4)]
	if op == nil {
		return failure{unasked(m)}
	}
	if err := jobs.ValidTenant(tenant); err != nil {
		return failure{s.errorOf(err)}
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	r, err := op(ctx, tenant, m)
	if r.Error = s.errorOf(ofObjects(err)); r.Error == nil && token(m.Subject, 4) == "get" {
		return nil // it has answered itself
	}
	return &r
}

// ofObjects makes an error of what took too long.
func ofObjects(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return unavailable("the store of objects", err)
	}
	return err
}

// nameOf gives the name of what is asked for: its digest, or what a job of the tenant calls it.
func (d *depot) nameOf(ctx context.Context, tenant string, q *jobs.ObjectRequest) (string, error) {
	if q.Job == "" {
		return q.SHA256, nil
	}
	j, err := d.brain.Get(ctx, tenant, q.Job)
	if err != nil {
		return "", err
	}
	if j.Spec != nil {
		for _, f := range j.Spec.Files {
			if f.Object != nil && f.Object.SHA256 == q.SHA256 {
				return f.Object.Name, nil
			}
		}
	}
	if j.Result != nil {
		for _, a := range j.Result.Artifacts {
			if a.Object != nil && a.Object.SHA256 == q.SHA256 {
				return a.Object.Name, nil
			}
		}
	}
	return "", &jobs.Error{Code: jobs.CodeNotFound, Message: "the job names no such object"}
}

func (d *depot) stat(ctx context.Context, tenant string, m *nats.Msg) (r jobs.ObjectReply, err error) {
	var q jobs.ObjectRequest
	if r.Warnings, err = jobs.DecodeRequest(m.Data, &q); err != nil {
		return r, err
	}
	name, err := d.nameOf(ctx, tenant, &q)
	if err != nil {
		return r, err
	}
	i, err := d.store.Stat(ctx, tenant, name)
	r.Size = i.Size
	return r, err
}

func (d *depot) put(ctx context.Context, tenant string, m *nats.Msg) (r jobs.ObjectReply, err error) {
	var q jobs.ObjectRequest
	if r.Warnings, err = jobs.DecodeRequest([]byte(m.Header.Get(jobs.ObjectHeader)), &q); err != nil {
		return r, err
	}
	r.Size = q.Size
	r.Next, r.Stored, err = d.uploads.Put(ctx, tenant, q.SHA256, q.Size, q.Offset, m.Data)
	return r, err
}

// get answers with the piece as it is: encoded as JSON it would be a third larger.
func (d *depot) get(ctx context.Context, tenant string, m *nats.Msg) (r jobs.ObjectReply, err error) {
	var q jobs.ObjectRequest
	if r.Warnings, err = jobs.DecodeRequest(m.Data, &q); err != nil {
		return r, err
	}
	n := d.conn.MaxPayload() - headroom
	if q.MaxBytes > 0 {
		n = min(n, q.MaxBytes)
	}
	if n > pieceUnit {
		n -= n % pieceUnit
	}
	name, err := d.nameOf(ctx, tenant, &q)
	if err != nil {
		return r, err
	}
	piece, i, err := d.store.Piece(ctx, tenant, name, q.Offset, int(n))
	if err != nil {
		return r, err
	}
	if q.Offset > i.Size {
		return r, &jobs.Error{Code: jobs.CodeInvalid, Message: "invalid request", Faults: []jobs.Fault{{Path: "offset", Message: fmt.Sprintf("is %d, and the object has %d bytes", q.Offset, i.Size)}}}
	}
	r.Size, r.Offset = i.Size, q.Offset
	header, err := json.Marshal(&r)
	if err != nil {
		return r, err
	}
	answer := nats.NewMsg("")
	answer.Header.Set(jobs.ObjectHeader, string(header))
	answer.Data = piece
	_ = m.RespondMsg(answer) // who asked asks again
	return r, nil
}
