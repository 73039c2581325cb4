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
// try on it also lies on disk. A worker that is to end, and whom no dispatcher has answered for a lease's length, or who may not wait
// because ctx has ended, leaves it there for its next life.
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
		if refused(err) {
			if spooled != "" {
				_ = os.Remove(spooled)
			}
			if r.Result.Ending == jobs.HostResources {
				return // not even that: the dispatcher takes the attempt back when no heartbeat names it
			}
			r.Result = jobs.Result{
				Ending: jobs.HostResources, Class: jobs.ClassInfra, Reason: said("the result could not be reported: " + err.Error()),
				Attempt: r.Result.Attempt, Worker: r.Result.Worker, EndedAt: r.Result.EndedAt,
			}
			continue
		}
		if spooled == "" {
			w.metrics.reportsLate.Inc()
			if spooled, err = w.spool(r); err != nil {
				zerolog.Ctx(ctx).Error().Err(err).Msg("spool result")
			}
		}
		if ctx.Err() != nil || spooled != "" && closed(drain) && w.session.expired() {
			return
		}
		sleep(sending, backoff)
	}
}

// refused tells an error that stays from one that another try may be without.
func refused(err error) bool {
	e, ok := errors.AsType[*jobs.Error](err)
	return ok && e.Code != jobs.CodeUnavailable && e.Code != jobs.CodeInternal && e.RetryAfterMS == 0
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
	if err := os.Rename(f.Name(), name); err != nil {
		return "", err
	}
	return name, syncDir(spoolDir(w.cfg.Dir))
}

// syncDir makes a directory's entries durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
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
			if refused(err) {
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
