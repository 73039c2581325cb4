package objects

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"sync"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
)

// place is where a chunk of an object is: in the object, and in the stream.
type place struct {
	offset int64
	seq    uint64
}

const (
	// maxIndexed is how many objects are known chunk by chunk; one of 4 GiB takes half a mebibyte.
	maxIndexed = 32
	// maxChunks is how many chunks one may have; Paddock's have 32,768 at most.
	maxChunks = 1 << 17
)

// index knows where the chunks are of objects that were read lately. Chunks are written once, under an id of their own, and never change.
type index struct {
	mu     sync.Mutex
	places map[string][]place // by the chunks' subject
	recent []string           // the one that was read last at the end
}

func newIndex() *index { return &index{places: map[string][]place{}} }

func (x *index) get(subject string) []place {
	x.mu.Lock()
	defer x.mu.Unlock()
	l := x.places[subject]
	if i := slices.Index(x.recent, subject); i >= 0 {
		x.recent = append(slices.Delete(x.recent, i, i+1), subject)
	}
	return l
}

func (x *index) put(subject string, l []place) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.places[subject] == nil {
		x.recent = append(x.recent, subject)
	}
	x.places[subject] = l
	if len(x.recent) > maxIndexed {
		delete(x.places, x.recent[0])
		x.recent = slices.Delete(x.recent, 0, 1)
	}
}

// placesOf finds an object's chunks. Their sizes are their writer's choice.
func (s *JetStream) placesOf(ctx context.Context, m *meta, subject string) ([]place, error) {
	if l := s.index.get(subject); l != nil || m.Size == 0 {
		return l, nil
	}
	if m.Chunks > maxChunks {
		return nil, fmt.Errorf("it is in %d chunks, and may be in %d", m.Chunks, maxChunks)
	}
	l, end := make([]place, 0, m.Chunks), int64(0)
	err := each(ctx, m.stream, subject, false, func(m jetstream.Msg, at *jetstream.MsgMetadata) error {
		n, err := strconv.ParseInt(m.Headers().Get("Nats-Msg-Size"), 10, 64)
		if l, end = append(l, place{end, at.Sequence.Stream}), end+n; err == nil && len(l) > maxChunks {
			err = fmt.Errorf("it is in more than %d chunks", maxChunks)
		}
		return err
	})
	if err == nil && end != int64(m.Size) {
		err = fmt.Errorf("%d bytes of %d are there: %w", end, m.Size, jetstream.ErrMsgNotFound) // who was asked may be behind
	}
	if err == nil {
		s.index.put(subject, l)
	}
	return l, err
}

// chunksAtOnce is how many chunks are asked for at once.
const chunksAtOnce = 8

// Piece implements Store.
func (s *JetStream) Piece(ctx context.Context, tenant, name string, offset int64, n int) ([]byte, Info, error) {
	ctx = asking(ctx)
	for try := 0; ; try++ {
		m, err := s.found(ctx, tenant, name)
		if err != nil {
			return nil, Info{}, err
		}
		b, err := s.piece(ctx, m, chunkSubject(tenant, m.NUID), offset, min(offset+int64(n), int64(m.Size)))
		switch {
		case err == nil:
			return b, m.info(), nil
		case errors.Is(err, jetstream.ErrMsgNotFound) && try < behindTries: // it is deleted in this moment, or who was asked is behind
			pause(ctx, behindPause<<try)
		default:
			return nil, Info{}, failed(ctx, tenant, "read object", err)
		}
	}
}

// piece reads from an offset to another.
func (s *JetStream) piece(ctx context.Context, m *meta, subject string, from, to int64) ([]byte, error) {
	if from >= to {
		return nil, nil
	}
	all, err := s.placesOf(ctx, m, subject)
	if err != nil {
		return nil, err
	}
	first := sort.Search(len(all), func(i int) bool { return all[i].offset > from }) - 1
	end := sort.Search(len(all), func(i int) bool { return all[i].offset >= to })
	b := make([]byte, to-from)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(chunksAtOnce)
	for _, p := range all[first:end] {
		g.Go(func() error {
			msg, err := m.stream.GetMsg(ctx, p.seq)
			if err != nil {
				return err
			}
			if skip := from - p.offset; skip > 0 {
				copy(b, msg.Data[min(skip, int64(len(msg.Data))):])
			} else {
				copy(b[-skip:], msg.Data)
			}
			return nil
		})
	}
	return b, g.Wait()
}
