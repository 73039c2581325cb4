package objects

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/paddockvm/paddock/jobs"
)

// readerIdle is after how long a server forgets a reader that is gone.
const readerIdle = 10 * time.Second

const (
	// askedFor is how long a server answers one request, and unheard half of the time without a word after which it is asked again: of a new
	// consumer not all servers of a cluster know yet where it is, and what is asked of it may be lost among them, of which nobody hears.
	askedFor = 10 * time.Second
	unheard  = 500 * time.Millisecond // the least that nats.go takes
)

// each gives the messages of a subject that a stream has now: the last of each one, or all, without their data.
func each(ctx context.Context, st jetstream.Stream, subject string, last bool, do func(m jetstream.Msg, at *jetstream.MsgMetadata) error) error {
	c := jetstream.OrderedConsumerConfig{FilterSubjects: []string{subject}, HeadersOnly: !last, InactiveThreshold: readerIdle}
	if last {
		c.DeliverPolicy = jetstream.DeliverLastPerSubjectPolicy
	}
	cons, err := st.OrderedConsumer(ctx, c)
	if err != nil {
		return err
	}
	if cons.CachedInfo().NumPending == 0 {
		return nil
	}
	it, err := cons.Messages(jetstream.PullExpiry(askedFor), jetstream.PullHeartbeat(unheard))
	if err != nil {
		return err
	}
	defer it.Stop()
	for {
		m, err := it.Next(jetstream.NextContext(ctx))
		if err != nil {
			return err
		}
		at, err := m.Metadata()
		if err == nil {
			err = do(m, at)
		}
		if err != nil || at.NumPending == 0 {
			return err
		}
	}
}

// said is the last that a bucket says of an object.
type said struct {
	jetstream.ObjectInfo
	subject string
	seq     uint64
}

func (s *JetStream) said(ctx context.Context, st jetstream.Stream, tenant string) (list []said, err error) {
	err = each(ctx, st, "$O."+jobs.ObjectBucket(tenant)+".M.>", true, func(m jetstream.Msg, at *jetstream.MsgMetadata) error {
		one := said{subject: m.Subject(), seq: at.Sequence.Stream}
		if err := json.Unmarshal(m.Data(), &one.ObjectInfo); err != nil {
			return nil //nolint:nilerr // somebody else's
		}
		one.ModTime = at.Timestamp
		list = append(list, one)
		return nil
	})
	return list, err
}

// List implements Store. How old they may become is Collector's to say, so that an age that Paddock gave the bucket once is taken from it.
func (s *JetStream) List(ctx context.Context, tenant string) (list []Info, err error) {
	ctx = asking(ctx)
	st, err := s.js.Stream(ctx, streamOf(tenant))
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, nil
	}
	var all []said
	if err == nil {
		err = s.ageless(ctx, st)
	}
	if err == nil {
		all, err = s.said(ctx, st, tenant)
	}
	if err != nil {
		return nil, failed(ctx, tenant, "list objects", err)
	}
	for _, one := range all {
		if !one.Deleted && !strings.HasPrefix(one.Name, temporary) {
			list = append(list, Info{Name: one.Name, Size: int64(one.Size), Stored: one.ModTime, version: one.seq})
		}
	}
	return list, nil
}

// Sweep implements Store: of temporary names, of chunks that no name has, and of names that were deleted. A bucket that is empty then gives back
// what was set aside for it.
func (s *JetStream) Sweep(ctx context.Context, tenant string, before time.Time) error {
	ctx = asking(ctx)
	st, err := s.js.Stream(ctx, streamOf(tenant))
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil
	}
	if err == nil {
		err = s.sweep(ctx, st, tenant, before)
	}
	if err == nil {
		err = s.giveBack(ctx, st, before)
	}
	if err != nil {
		return failed(ctx, tenant, "sweep", err)
	}
	return nil
}

func (s *JetStream) sweep(ctx context.Context, st jetstream.Stream, tenant string, before time.Time) error {
	chunks, err := st.Info(ctx, jetstream.WithSubjectFilter(chunkSubject(tenant, ">")))
	if err != nil {
		return err
	}
	all, err := s.said(ctx, st, tenant) // after the chunks: what is stored meanwhile has its name here
	if err != nil {
		return err
	}
	for _, one := range all {
		old := one.ModTime.Before(before)
		if old && (one.Deleted || strings.HasPrefix(one.Name, temporary)) {
			// Up to this one: a later one is of somebody who stores it anew. Its chunks then are nobody's.
			if err := st.Purge(ctx, jetstream.WithPurgeSubject(one.subject), jetstream.WithPurgeSequence(one.seq+1)); err != nil {
				return err
			}
			continue
		}
		if !one.Deleted {
			delete(chunks.State.Subjects, chunkSubject(tenant, one.NUID))
		}
	}
	for subject := range chunks.State.Subjects {
		last, err := st.GetLastMsgForSubject(ctx, subject)
		if errors.Is(err, jetstream.ErrMsgNotFound) || err == nil && !last.Time.Before(before) {
			continue
		}
		if err == nil {
			err = st.Purge(ctx, jetstream.WithPurgeSubject(subject))
		}
		if err != nil {
			return err
		}
	}
	return nil
}
