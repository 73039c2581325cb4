package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/paddockvm/paddock/jobs"
)

const (
	// objectWithin bounds the wait for one piece of an object, and objectPatience that for the next when the dispatcher is away in the middle.
	objectWithin   = 15 * time.Second
	objectPatience = time.Minute
	// elsewherePause is before the next try where the dispatcher has less than it had: it may be that two believe to lead.
	elsewherePause = 100 * time.Millisecond
	// piecesAtOnce is how many pieces are on their way at once.
	piecesAtOnce = 4
	// pieceUnit is what pieces are whole multiples of, and pieceHeadroom what a message has besides one.
	pieceUnit     = 128 << 10
	pieceHeadroom = 8 << 10
)

// PutObject stores a file's content for File.Object: what is too large to go inline. It is read for its digest first, and again where no
// such object is there; a file that changes meanwhile is an error, "invalid". The object is kept for as long as the dispatcher is told to
// keep objects, a week by default, from then on, and while a job that has not ended names it. Where the tenant's objects have no room for
// it the error is "quota_exceeded".
func (c *Client) PutObject(ctx context.Context, f *os.File) (jobs.ObjectRef, error) {
	h := sha256.New()
	size, err := io.Copy(h, io.NewSectionReader(f, 0, math.MaxInt64))
	if err != nil {
		return jobs.ObjectRef{}, err
	}
	return c.putObject(ctx, f, size, hex.EncodeToString(h.Sum(nil)))
}

// putBytes is PutObject for what is in memory.
func (c *Client) putBytes(ctx context.Context, b []byte) (jobs.ObjectRef, error) {
	sum := sha256.Sum256(b)
	return c.putObject(ctx, bytes.NewReader(b), int64(len(b)), hex.EncodeToString(sum[:]))
}

// putObject sends what the dispatcher does not have, from where it says on; another dispatcher, after this one, may say that it is from the
// beginning.
func (c *Client) putObject(ctx context.Context, from io.ReaderAt, size int64, sum string) (jobs.ObjectRef, error) {
	r, err := c.putPiece(ctx, jobs.ObjectRequest{SHA256: sum, Size: size}, nil)
	if err != nil {
		return jobs.ObjectRef{}, err
	}
	last, storing := time.Now(), elsewherePause // last: when it was farther than before
	for !r.Stored {
		was := r.Next
		r, err = c.putPieces(ctx, from, jobs.ObjectRequest{SHA256: sum, Size: size, Offset: r.Next})
		switch {
		case err == nil && r.Next == size: // it is being stored
			if last = time.Now(); !r.Stored {
				pause(ctx, storing)
				storing = min(2*storing, time.Second)
			}
			continue
		case err == nil && r.Next > was:
			last = time.Now()
			continue
		case err == nil && time.Since(last) < objectPatience: // from another place on
			pause(ctx, elsewherePause)
			continue
		case err == nil:
			return jobs.ObjectRef{}, &jobs.Error{Code: jobs.CodeUnavailable, Message: "the dispatcher has got no more of the object for a minute", RetryAfterMS: 1000}
		case ctx.Err() != nil || !passing(err) || time.Since(last) > objectPatience:
			return jobs.ObjectRef{}, err
		}
		r.Next = was
		pause(ctx, retryAfter(err))
	}
	return jobs.ObjectRef{Name: sum, SHA256: sum}, nil
}

// putPieces sends some pieces at once, and gives how far it is then.
func (c *Client) putPieces(ctx context.Context, from io.ReaderAt, q jobs.ObjectRequest) (r jobs.ObjectReply, err error) {
	n := c.pieceBytes()
	replies := make([]jobs.ObjectReply, piecesAtOnce)
	g, ctx := errgroup.WithContext(ctx)
	for i := range replies {
		q := q
		if q.Offset += int64(i) * n; i > 0 && q.Offset >= q.Size {
			break
		}
		g.Go(func() (err error) {
			piece := make([]byte, min(n, q.Size-q.Offset))
			if _, err = io.ReadFull(io.NewSectionReader(from, q.Offset, int64(len(piece))), piece); err != nil {
				return fmt.Errorf("read the object's file, which has become shorter: %w", err)
			}
			replies[i], err = c.putPiece(ctx, q, piece)
			return err
		})
	}
	err = g.Wait()
	for _, one := range replies {
		if one.Stored || one.Next > r.Next && !r.Stored {
			r = one
		}
	}
	return r, err
}

// pieceBytes is how large pieces are.
func (c *Client) pieceBytes() int64 {
	n := c.nc.MaxPayload() - pieceHeadroom
	if n > pieceUnit {
		n -= n % pieceUnit
	}
	return n
}

func (c *Client) putPiece(ctx context.Context, q jobs.ObjectRequest, piece []byte) (jobs.ObjectReply, error) {
	header, err := json.Marshal(q)
	if err != nil {
		return jobs.ObjectReply{}, err
	}
	m := nats.NewMsg(jobs.ObjectSubject(c.tenant, "put"))
	m.Header.Set(jobs.ObjectHeader, string(header))
	m.Data = piece
	answer, err := c.askObject(ctx, m)
	if err != nil {
		return jobs.ObjectReply{}, err
	}
	return replyOf(m.Subject, answer.Data)
}

// askObject is one request and its answer.
func (c *Client) askObject(ctx context.Context, m *nats.Msg) (*nats.Msg, error) {
	answer, err := c.request(ctx, objectWithin, m)
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return answer, err
}

func replyOf(subject string, data []byte) (r jobs.ObjectReply, err error) {
	switch err := json.Unmarshal(data, &r); {
	case err != nil:
		return r, strange(subject)
	case r.Error != nil:
		return r, r.Error
	}
	return r, nil
}

// passing tells whether what failed may succeed when it is tried again.
func passing(err error) bool {
	e, ok := errors.AsType[*jobs.Error](err)
	return ok && e.Code == jobs.CodeUnavailable
}

func retryAfter(err error) time.Duration {
	if e, ok := errors.AsType[*jobs.Error](err); ok && e.RetryAfterMS > 0 {
		return min(time.Duration(e.RetryAfterMS)*time.Millisecond, 5*time.Second)
	}
	return time.Second
}

// GetObject reads an object that an artifact names, as a stream, which the caller closes; an error at its end says that its digest is
// not the one named. One that is missing is a *jobs.Error, "not_found".
func (c *Client) GetObject(ctx context.Context, ref jobs.ObjectRef) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	o := &object{c: c, ctx: ctx, cancel: cancel, ref: ref, digest: sha256.New(), unit: c.pieceBytes()}
	first, err := o.fetch(0, o.unit)
	if err != nil {
		cancel()
		return nil, err
	}
	o.piece, o.asked = first, int64(len(first))
	return o, nil
}

// object is one that is being read: some pieces ahead, in order.
type object struct {
	c      *Client
	ctx    context.Context //nolint:containedctx // GetObject's, until Close
	cancel context.CancelFunc
	ref    jobs.ObjectRef
	digest hash.Hash
	size   int64 // known from the first piece on
	unit   int64 // how much is asked for at once
	piece  []byte
	asked  int64 // up to where pieces were asked for
	ahead  []chan fetched
}

type fetched struct {
	piece []byte
	err   error
}

// fetch gets n bytes from an offset on, or what is there of them.
func (o *object) fetch(offset, n int64) (b []byte, err error) {
	for last := time.Now(); ; {
		q := jobs.ObjectRequest{SHA256: o.ref.SHA256, Offset: offset + int64(len(b)), MaxBytes: n - int64(len(b))}
		piece, size, err := o.c.getPiece(o.ctx, q)
		switch {
		case err == nil:
			if b, last = append(b, piece...), time.Now(); offset == 0 {
				o.size = size // nobody else reads it yet
			}
			if end := min(offset+n, size); offset+int64(len(b)) >= end {
				return b, nil
			}
			if len(piece) == 0 {
				return nil, strange(jobs.ObjectSubject(o.c.tenant, "get"))
			}
		case offset == 0 || o.ctx.Err() != nil || !passing(err) || time.Since(last) > objectPatience:
			return nil, err
		default:
			pause(o.ctx, retryAfter(err))
		}
	}
}

func (c *Client) getPiece(ctx context.Context, q jobs.ObjectRequest) ([]byte, int64, error) {
	body, err := json.Marshal(q)
	if err != nil {
		return nil, 0, err
	}
	m := nats.NewMsg(jobs.ObjectSubject(c.tenant, "get"))
	m.Data = body
	answer, err := c.askObject(ctx, m)
	if err != nil {
		return nil, 0, err
	}
	header := answer.Header.Get(jobs.ObjectHeader)
	if header == "" {
		_, err := replyOf(m.Subject, answer.Data)
		if err == nil {
			err = strange(m.Subject)
		}
		return nil, 0, err
	}
	r, err := replyOf(m.Subject, []byte(header))
	if err == nil && (r.Offset != q.Offset || int64(len(answer.Data)) > q.MaxBytes) {
		err = strange(m.Subject)
	}
	return answer.Data, r.Size, err
}

func (o *object) Read(b []byte) (int, error) {
	for len(o.piece) == 0 {
		o.ask()
		if len(o.ahead) == 0 {
			return 0, o.check()
		}
		next := <-o.ahead[0]
		o.ahead = o.ahead[1:]
		if next.err != nil {
			o.ahead = append([]chan fetched{done(next)}, o.ahead...) // whoever reads on gets it again
			return 0, next.err
		}
		o.piece = next.piece
	}
	o.ask()
	n := copy(b, o.piece)
	o.piece = o.piece[n:]
	o.digest.Write(b[:n])
	return n, nil
}

func done(f fetched) chan fetched {
	c := make(chan fetched, 1)
	c <- f
	return c
}

// ask asks for further pieces, as many as may be on their way.
func (o *object) ask() {
	for len(o.ahead) < piecesAtOnce && o.asked < o.size {
		c, from := make(chan fetched, 1), o.asked
		go func() { // ends with its requests, whose context Close ends
			piece, err := o.fetch(from, o.unit)
			c <- fetched{piece, err}
		}()
		o.ahead = append(o.ahead, c)
		o.asked += o.unit
	}
}

func (o *object) check() error {
	if got := hex.EncodeToString(o.digest.Sum(nil)); got != o.ref.SHA256 {
		return fmt.Errorf("object %s has the digest %s, not %s", o.ref.Name, got, o.ref.SHA256)
	}
	return io.EOF
}

// Close ends the reading, and waits for what was asked.
func (o *object) Close() error {
	o.cancel()
	for _, c := range o.ahead {
		<-c
	}
	o.ahead = nil
	return nil
}
