package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/jobs"
)

const reportTimeout = 5 * time.Second

func spoolDir(dir string) string { return filepath.Join(dir, "spool") }

// report sends a result until it is answered, however long that takes: a dispatcher that was away may still want it. From the second
// try on it also lies on disk. A worker that is to end, and whom no dispatcher has answered for a lease's length or who may not wait,
// leaves it there for its next life.
func (w *Worker) report(ctx context.Context, drain <-chan struct{}, r jobs.Report) {
	r.Worker, r.Session = w.cfg.Name, w.session.id()
	sending := context.WithoutCancel(ctx)
	spooled := ""
	for backoff := leaseBackoff; ; backoff = min(2*backoff, maxBackoff) {
		reply, err := w.sendReport(sending, r)
		if err == nil {
			if reply.Fenced {
				zerolog.Ctx(ctx).Warn().Str("ending", string(r.Result.Ending)).Msg("result fenced")
			}
			if spooled != "" {
				_ = os.Remove(spooled)
			}
			return
		}
		zerolog.Ctx(ctx).Warn().Err(err).Msg("report result")
		if spooled == "" {
			w.metrics.reportsLate.Inc()
			if spooled, err = w.spool(r); err != nil {
				zerolog.Ctx(ctx).Error().Err(err).Msg("spool result")
			}
		}
		if spooled != "" && (aborted(ctx) || closed(drain) && w.session.expired()) {
			return
		}
		sleep(sending, backoff)
	}
}

// aborted tells a worker that must end from one attempt that was ended.
func aborted(ctx context.Context) bool {
	cause := context.Cause(ctx)
	return cause != nil && !errors.Is(cause, errCanceled) && !errors.Is(cause, errDropped)
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (w *Worker) sendReport(ctx context.Context, r jobs.Report) (jobs.ReportReply, error) {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	reply, err := w.cfg.Dispatcher.Report(ctx, r)
	if err != nil {
		return reply, err
	}
	if reply.Error != nil {
		return reply, reply.Error
	}
	return reply, nil
}

// spool writes a report to disk, durably, and gives the file's name.
func (w *Worker) spool(r jobs.Report) (string, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return "", err
	}
	f, err := os.CreateTemp(spoolDir(w.cfg.Dir), "new-")
	if err != nil {
		return "", err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	name := filepath.Join(spoolDir(w.cfg.Dir), fmt.Sprintf("%s.%d.%d.json", r.Job, r.Attempt, r.Epoch))
	return name, os.Rename(f.Name(), name)
}

// resendSpooled sends what an earlier life of this worker could not. It tries each once per dispatcher that answers; a result that
// cannot be read is set aside, not lost.
func (w *Worker) resendSpooled(ctx context.Context) error {
	entries, err := os.ReadDir(spoolDir(w.cfg.Dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read spool: %w", err)
	}
	for _, e := range entries {
		name := filepath.Join(spoolDir(w.cfg.Dir), e.Name())
		if !strings.HasSuffix(name, ".json") {
			if strings.HasPrefix(e.Name(), "new-") {
				_ = os.Remove(name) // torn: its worker died while it wrote
			}
			continue
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return fmt.Errorf("read spool: %w", err)
		}
		var r jobs.Report
		if err := json.Unmarshal(b, &r); err != nil {
			zerolog.Ctx(ctx).Error().Err(err).Str("file", name).Msg("unreadable result set aside")
			_ = os.Rename(name, name+".broken")
			continue
		}
		for ctx.Err() == nil {
			if _, err = w.sendReport(ctx, r); err == nil {
				_ = os.Remove(name)
				break
			}
			var refused *jobs.Error
			if errors.As(err, &refused) && refused.Code != jobs.CodeUnavailable {
				zerolog.Ctx(ctx).Error().Err(err).Str("file", name).Msg("refused result set aside")
				_ = os.Rename(name, name+".broken")
				break
			}
			zerolog.Ctx(ctx).Info().Err(err).Msg("no dispatcher takes spooled results yet")
			sleep(ctx, w.cfg.BeatEvery)
		}
	}
	return nil
}
