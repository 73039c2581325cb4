package objects

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/paddockvm/paddock/jobs"
)

// JetStream keeps objects in buckets of JetStream's object store, one a tenant, as ADR-20 of NATS says. Links are not followed: an object of
// another bucket is none of this tenant's.
type JetStream struct {
	js    jetstream.JetStream
	maker func(ctx context.Context, tenant string) error
	index *index
}

var _ Store = (*JetStream)(nil)

// NewJetStream gives the store; a tenant's bucket is made when the first object is put. js's default timeout is how long each answer is waited
// for: 4 MiB may have to be written before one.
func NewJetStream(js jetstream.JetStream) *JetStream {
	return &JetStream{js: js, index: newIndex()}
}

// MadeBy gives the store for somebody who may not make buckets: maker is called where there is none, and returns when there is.
func (s *JetStream) MadeBy(maker func(ctx context.Context, tenant string) error) *JetStream {
	return &JetStream{js: s.js, maker: maker, index: s.index}
}

// there gives a bucket that is there.
func (s *JetStream) there(ctx context.Context, tenant, name string) (jetstream.ObjectStore, error) {
	o, err := s.js.ObjectStore(ctx, jobs.ObjectBucket(tenant))
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return nil, notFound(tenant, name)
	}
	if err != nil {
		return nil, failed(ctx, tenant, "open the object store", err)
	}
	return o, nil
}

// Get implements Store.
func (s *JetStream) Get(ctx context.Context, tenant, name string) (io.ReadCloser, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	r, err := s.get(ctx, tenant, name)
	if err != nil {
		cancel()
		return nil, err
	}
	return &object{r, cancel}, nil
}

func (s *JetStream) get(ctx context.Context, tenant, name string) (jetstream.ObjectResult, error) {
	o, err := s.there(asking(ctx), tenant, name)
	if err != nil {
		return nil, err
	}
	if _, err := s.found(asking(ctx), tenant, name); err != nil {
		return nil, err
	}
	r, err := s.open(ctx, o, name)
	if errors.Is(err, jetstream.ErrObjectNotFound) || errors.Is(err, jetstream.ErrCantGetBucket) {
		return nil, notFound(tenant, name)
	}
	if err != nil {
		return nil, failed(ctx, tenant, "read object", err)
	}
	if i, err := r.Info(); err != nil || i.Bucket != jobs.ObjectBucket(tenant) || i.Name != name { // where a link has led
		_ = r.Close() // it is not read
		return nil, notFound(tenant, name)
	}
	return r, nil
}

// object is one that is being read.
type object struct {
	jetstream.ObjectResult
	cancel context.CancelFunc
}

func (o *object) Close() error {
	o.cancel()
	return o.ObjectResult.Close()
}

// meta is what a bucket has of an object, and the message that says so.
type meta struct {
	jetstream.ObjectInfo
	stream jetstream.Stream
	msg    *jetstream.RawStreamMsg
}

func (m *meta) info() Info {
	return Info{Name: m.Name, Size: int64(m.Size), Stored: m.msg.Time, version: m.msg.Sequence}
}

// digest is that which the store has found; empty where it says none.
func (m *meta) digest() string {
	b, err := jetstream.DecodeObjectDigest(m.Digest)
	if err != nil {
		return ""
	}
	return hex.EncodeToString(b)
}

func streamOf(tenant string) string { return "OBJ_" + jobs.ObjectBucket(tenant) }

func metaSubject(tenant, name string) string {
	return "$O." + jobs.ObjectBucket(tenant) + ".M." + base64.URLEncoding.EncodeToString([]byte(name))
}

func chunkSubject(tenant, id string) string { return "$O." + jobs.ObjectBucket(tenant) + ".C." + id }

// meta finds an object. One that lies under a digest and has another is none: somebody has put it there who may write to the bucket.
func (s *JetStream) meta(ctx context.Context, tenant, name string) (*meta, error) {
	st, err := s.js.Stream(ctx, streamOf(tenant))
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, notFound(tenant, name)
	}
	if err != nil {
		return nil, failed(ctx, tenant, "open the object store", err)
	}
	msg, err := st.GetLastMsgForSubject(ctx, metaSubject(tenant, name))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, notFound(tenant, name)
	}
	if err != nil {
		return nil, failed(ctx, tenant, "look for object", err)
	}
	m := &meta{stream: st, msg: msg}
	switch err := json.Unmarshal(msg.Data, &m.ObjectInfo); {
	case err != nil, m.Deleted, m.NUID == "", m.Opts != nil && m.Opts.Link != nil, m.Name != name, jobs.IsDigest(name) && m.digest() != name:
		return nil, notFound(tenant, name)
	}
	return m, nil
}

const (
	// behindTries and behindPause are how long a replica that answers is let catch up with what another has acknowledged.
	behindTries = 5
	behindPause = 20 * time.Millisecond
)

// found is meta for those who were told that the object is there: of a bucket with replicas, one that answers may not have it yet.
func (s *JetStream) found(ctx context.Context, tenant, name string) (*meta, error) {
	for try := 0; ; try++ {
		m, err := s.meta(ctx, tenant, name)
		if !isNotFound(err) || try == behindTries || !s.replicated(ctx, tenant) {
			return m, err
		}
		pause(ctx, behindPause<<try)
	}
}

// replicated tells whether several servers have a tenant's bucket.
func (s *JetStream) replicated(ctx context.Context, tenant string) bool {
	st, err := s.js.Stream(ctx, streamOf(tenant))
	return err == nil && st.CachedInfo().Config.Replicas > 1
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// Stat implements Store.
func (s *JetStream) Stat(ctx context.Context, tenant, name string) (Info, error) {
	m, err := s.found(asking(ctx), tenant, name)
	if err != nil {
		return Info{}, err
	}
	return m.info(), nil
}

// Renew implements Store: it says again what is said of the object, unless another has said something else meanwhile. Of a bucket whose
// messages have an age, what is old is taken for missing: its chunks would go all the same.
func (s *JetStream) Renew(ctx context.Context, tenant, name string) (Info, error) {
	ctx = asking(ctx)
	for {
		m, err := s.meta(ctx, tenant, name)
		if err != nil {
			return Info{}, err
		}
		if age := m.stream.CachedInfo().Config.MaxAge; age > 0 {
			if time.Since(m.msg.Time) >= age/2 {
				return Info{}, notFound(tenant, name)
			}
			return m.info(), nil
		}
		seq, err := s.say(ctx, m, tenant)
		if isChanged(err) && ctx.Err() == nil { // or who was asked was behind
			pause(ctx, behindPause)
			continue
		}
		if err != nil {
			return Info{}, failed(ctx, tenant, "renew object", err)
		}
		i := m.info()
		i.Stored, i.version = time.Now(), seq
		return i, nil
	}
}

// say says of an object what m has become, where what m was is still the last that was said.
func (s *JetStream) say(ctx context.Context, m *meta, tenant string) (seq uint64, err error) {
	m.ModTime = time.Time{}
	data, err := json.Marshal(m.ObjectInfo)
	if err != nil {
		return 0, err
	}
	msg := nats.NewMsg(metaSubject(tenant, m.Name))
	msg.Data = data
	msg.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupSubject)
	ack, err := s.js.PublishMsg(ctx, msg, jetstream.WithExpectLastSequencePerSubject(m.msg.Sequence))
	if err != nil {
		return 0, err
	}
	return ack.Sequence, nil
}

// Delete implements Store.
func (s *JetStream) Delete(ctx context.Context, tenant string, i Info) (bool, error) {
	ctx = asking(ctx)
	m, err := s.meta(ctx, tenant, i.Name)
	switch {
	case isNotFound(err):
		return false, nil
	case err != nil:
		return false, err
	case m.msg.Sequence != i.version:
		return false, nil
	}
	chunks := chunkSubject(tenant, m.NUID)
	m.Deleted, m.Size, m.Chunks, m.Digest = true, 0, 0, ""
	_, err = s.say(ctx, m, tenant)
	if isChanged(err) {
		return false, nil
	}
	if err != nil {
		return false, failed(ctx, tenant, "delete object", err)
	}
	if err := m.stream.Purge(ctx, jetstream.WithPurgeSubject(chunks)); err != nil {
		return true, failed(ctx, tenant, "delete object", err) // Sweep does it too
	}
	return true, nil
}

// Put implements Store. The digest is the one of what is sent.
func (s *JetStream) Put(ctx context.Context, tenant string, r io.Reader) (jobs.ObjectRef, error) {
	sum, err := s.put(ctx, tenant, r, "")
	return jobs.ObjectRef{Name: sum, SHA256: sum}, err
}

// PutAs implements Store.
func (s *JetStream) PutAs(ctx context.Context, tenant, digest string, size int64, r io.ReaderAt) error {
	_, err := s.put(ctx, tenant, io.NewSectionReader(r, 0, size), digest)
	return err
}

func (s *JetStream) put(ctx context.Context, tenant string, r io.Reader, want string) (sum string, err error) {
	limited, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	ctx = asking(limited)
	o, err := s.bucket(ctx, tenant)
	if err != nil {
		return "", failed(ctx, tenant, "open the object store", err)
	}
	h := sha256.New()
	source := &source{r: io.TeeReader(r, h), settle: func() error { return s.settle(ctx, tenant) }}
	tmp := temporary + nuid.Next() // the name is known when all has been read
	if _, err := o.Put(ctx, jetstream.ObjectMeta{Name: tmp}, source); err != nil {
		if source.err != nil {
			return "", source.err
		}
		return "", failed(ctx, tenant, "write object", err)
	}
	sum = hex.EncodeToString(h.Sum(nil))
	if want != "" && sum != want {
		_ = o.Delete(context.WithoutCancel(ctx), tmp) // Sweep does it too
		return "", wrongDigest(want, sum)
	}
	if err := s.rename(ctx, o, tenant, tmp, sum); err != nil {
		_ = o.Delete(context.WithoutCancel(ctx), tmp) // likewise
		return "", failed(ctx, tenant, "name object", err)
	}
	return sum, nil
}

// rename gives an object its digest for a name, unless one is there that will do.
func (s *JetStream) rename(ctx context.Context, o jetstream.ObjectStore, tenant, from, digest string) error {
	for {
		_, err := s.Renew(ctx, tenant, digest)
		if err == nil {
			return o.Delete(ctx, from)
		}
		if !isNotFound(err) {
			return err
		}
		if err = s.clear(ctx, tenant, digest); err == nil {
			err = o.UpdateMeta(ctx, from, jetstream.ObjectMeta{Name: digest})
		}
		if (isChanged(err) || errors.Is(err, jetstream.ErrObjectAlreadyExists)) && ctx.Err() == nil { // in this moment, by another
			pause(ctx, behindPause)
			continue
		}
		return err
	}
}

// clear deletes what lies under a digest and is no such object, or one that is too old, unless another does something about it meanwhile.
func (s *JetStream) clear(ctx context.Context, tenant, digest string) error {
	st, err := s.js.Stream(ctx, streamOf(tenant))
	if err != nil {
		return err
	}
	msg, err := st.GetLastMsgForSubject(ctx, metaSubject(tenant, digest))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	m := &meta{stream: st, msg: msg}
	if err := json.Unmarshal(msg.Data, &m.ObjectInfo); err != nil || m.Deleted || m.NUID == "" {
		return nil //nolint:nilerr // it is in nobody's way
	}
	age := st.CachedInfo().Config.MaxAge
	if m.digest() == digest && (age == 0 || time.Since(msg.Time) < age/2) && (m.Opts == nil || m.Opts.Link == nil) {
		return jetstream.ErrObjectAlreadyExists
	}
	chunks := chunkSubject(tenant, m.NUID)
	m.ObjectInfo = jetstream.ObjectInfo{ObjectMeta: jetstream.ObjectMeta{Name: digest}, Bucket: m.Bucket, NUID: m.NUID, Deleted: true}
	if _, err := s.say(ctx, m, tenant); err != nil {
		return err
	}
	return st.Purge(ctx, jetstream.WithPurgeSubject(chunks))
}

// Tenants implements Store.
func (s *JetStream) Tenants(ctx context.Context) (list []string, err error) {
	ctx = asking(ctx)
	l := s.js.StreamNames(ctx, jetstream.WithStreamListSubject("$O.>"))
	for name := range l.Name() {
		if tenant, ok := strings.CutPrefix(name, streamOf("")); ok && jobs.ValidTenant(tenant) == nil {
			list = append(list, tenant)
		}
	}
	if err := l.Err(); err != nil {
		return nil, failed(ctx, "", "list buckets", err)
	}
	return list, nil
}
