package bus

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/rs/zerolog"
)

// What JetStream wants of who has it in his process: to be started anew. A stream that could not write once, because the disk was full, takes
// nothing any more, however much room there is again, and one may have as much as was set aside for it only where the disk has it free.

const (
	// storeEvery is how often it is looked whether streams can be written.
	storeEvery = 2 * time.Second
	// storeRoom is what has to fit on the disk before JetStream is started anew: with less it would soon be where it was.
	storeRoom = 4 << 20
)

// keepStore starts JetStream anew when streams cannot be written any more and the disk has room, until ctx ends.
func (s *Server) keepStore(ctx context.Context, log zerolog.Logger) {
	t := time.NewTicker(storeEvery)
	defer t.Stop()
	var before map[string]bool
	for told, tried := false, false; ; {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		failed := s.failed()
		lasting := false // what is seen once may be a stream that is just being deleted
		for stream := range failed {
			lasting = lasting || before[stream]
		}
		if before = failed; !lasting && s.s.JetStreamEnabled() {
			continue
		}
		if !told {
			log.Error().Str("dir", s.dir).Msg("nats: the store cannot be written any more; when its disk has room, it is opened anew")
			told = true
		}
		if roomFor(s.dir) != nil { // which is what has been told
			continue
		}
		if err := s.reopen(0); err != nil {
			if !tried {
				log.Error().Err(err).Msg("nats: open the store anew, until it works")
			}
			tried = true
			continue
		}
		before, told, tried = nil, false, false
		log.Info().Msg("nats: the store has been opened anew")
	}
}

// failed gives the streams that are there and out of order. Those are not that are being made or deleted, or that could not be recovered when
// JetStream began, which another start would not mend.
func (s *Server) failed() map[string]bool {
	if len(s.unhealthy()) == 0 {
		return nil
	}
	i, err := s.s.Jsz(&server.JSzOptions{Accounts: true, Streams: true})
	if err != nil {
		return nil
	}
	unhealthy, failed := s.unhealthy(), map[string]bool{}
	for _, a := range i.AccountDetails {
		for _, st := range a.Streams {
			if name := a.Name + "/" + st.Name; unhealthy[name] {
				failed[name] = true
			}
		}
	}
	return failed
}

// unhealthy gives what the server says is out of order and has a directory.
func (s *Server) unhealthy() map[string]bool {
	var names map[string]bool
	for _, e := range s.s.Healthz(&server.HealthzOptions{Details: true}).Errors {
		if e.Type != server.HealthzErrorStream {
			continue
		}
		if names == nil {
			names = map[string]bool{}
		}
		names[e.Account+"/"+e.Stream] = true
	}
	return names
}

// reopen starts JetStream anew. It may have so much of the disk, or where that is 0 as much as the server thinks fit, and in any case what
// streams have been promised.
func (s *Server) reopen(most int64) error {
	err := errors.Join(s.s.ShutdownJetStream(), s.s.EnableJetStream(&server.JetStreamConfig{StoreDir: s.dir, MaxStore: most}))
	if err != nil {
		return errors.Join(err, s.s.ShutdownJetStream()) // what has been started by half counts as started
	}
	return s.keepPromises()
}

// keepPromises lets JetStream have as much of the disk as its streams may take by their bounds. By itself it has three quarters of what is
// free when it begins; where that has become less, it refuses every change of a stream, and a dispatcher could not begin any more.
func (s *Server) keepPromises() error {
	i, err := s.s.Jsz(nil)
	if err != nil {
		return err
	}
	if promised := int64(i.ReservedStore); promised > i.Config.MaxStore {
		return s.reopen(promised)
	}
	return nil
}

// roomFor tells whether something can be written into a directory.
func roomFor(dir string) error {
	f, err := os.CreateTemp(dir, ".room-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(make([]byte, storeRoom))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write into %s: %w", dir, err)
	}
	return nil
}
