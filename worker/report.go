package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/jobs"
)

const reportTimeout = 5 * time.Second

// deliver brings an attempt's last events, and then its result r, to where they belong, however long that takes: who was away may still want
// them. What cannot be told at once lies on disk, and is told from there, in this life of the worker or its next. When lost ends because the
// attempt is not this worker's any more, nothing more is told.
func (w *Worker) deliver(ctx, lost context.Context, drain <-chan struct{}, s *stream, r jobs.Report) {
	defer s.close()
	r.Worker, r.Session = w.cfg.Name, w.session.id()
	last, stored := s.end()
	r.Events = last
	for told := false; !stored && !dropped(lost); told = true {
		if err := s.lost(); err != nil {
			r.Result, r.Events, stored = instead(r.Result, err), s.storedSeq(), true
			break
		}
		d, err := w.spool(r, s)
		if err == nil {
			s.close()
			w.redeliver(ctx, lost, drain, d)
			return
		}
		if !told {
			zerolog.Ctx(ctx).Error().Err(err).Msg("spool result and events")
		}
		if lost.Err() != nil {
			break
		}
		sleep(lost, publishRetryMost)
		stored = s.again(lost)
	}
	if !stored || dropped(lost) {
		zerolog.Ctx(ctx).Warn().Err(context.Cause(lost)).Msg("attempt given up")
		return
	}
	w.report(ctx, drain, &delivery{Report: r})
}

// instead is the result of an attempt of which r cannot be told.
func instead(r jobs.Result, why error) jobs.Result {
	return jobs.Result{
		Ending: jobs.HostResources, Class: jobs.ClassInfra, Reason: said(why.Error()), Attempt: r.Attempt, Worker: r.Worker, EndedAt: r.EndedAt,
	}
}

// dropped tells whether an attempt is not this worker's any more, by the context that add has given.
func dropped(lost context.Context) bool { return errors.Is(context.Cause(lost), errDropped) }

// redeliver is deliver of what lies on disk.
func (w *Worker) redeliver(ctx, lost context.Context, drain <-chan struct{}, d *delivery) {
	told, err := w.sendEvents(ctx, lost, drain, d)
	switch {
	case dropped(lost):
		zerolog.Ctx(ctx).Warn().Msg("attempt given up")
		d.forget()
	case err != nil: // the dispatcher takes the attempt back when no heartbeat names it
		zerolog.Ctx(ctx).Error().Err(err).Str("file", d.name).Msg("unreadable events set aside, with their result")
		d.setAside()
	case told:
		w.report(ctx, drain, d)
	}
}

// sendEvents stores the events that wait on disk. It gives false where they stay there.
func (w *Worker) sendEvents(ctx, lost context.Context, drain <-chan struct{}, d *delivery) (told bool, _ error) {
	f, err := os.Open(d.eventsFile())
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	for events := framesOf(f); ; {
		batch, err := events.batch()
		if errors.Is(err, io.EOF) {
			_ = os.Remove(d.eventsFile())
			return true, nil
		}
		if err != nil {
			return false, err
		}
		if !w.publish(ctx, lost, drain, batch) {
			return false, nil
		}
	}
}

// publish stores events until it works; false where the worker leaves, or lost ends.
func (w *Worker) publish(ctx, lost context.Context, drain <-chan struct{}, batch []jobs.Event) bool {
	for backoff := publishRetry; lost.Err() == nil; backoff = min(2*backoff, publishRetryMost) {
		wait, cancel := context.WithTimeout(lost, w.cfg.BeatEvery)
		own := w.session.own(wait, nil)
		cancel()
		if own && w.cfg.Events.Republish(lost, batch...) == nil {
			return true
		}
		if w.leaves(ctx, drain) {
			return false
		}
		if own {
			sleep(lost, backoff)
		}
	}
	return false
}

// leaves tells whether the worker is to end and may leave what is on disk to its next life: nobody has answered for a lease's length, or it may
// not wait because ctx has ended.
func (w *Worker) leaves(ctx context.Context, drain <-chan struct{}) bool {
	return ctx.Err() != nil || closed(drain) && w.session.expired()
}

// report sends a result until it is answered. From the second try on it also lies on disk.
func (w *Worker) report(ctx context.Context, drain <-chan struct{}, d *delivery) {
	sending := context.WithoutCancel(ctx)
	began := time.Now()
	for backoff := leaseBackoff; ; backoff = min(2*backoff, maxBackoff) {
		reply, err := w.sendReport(sending, d.Report)
		if err == nil {
			if reply.Fenced {
				zerolog.Ctx(ctx).Warn().Str("ending", string(d.Result.Ending)).Msg("result fenced")
			} else if backoff > leaseBackoff {
				zerolog.Ctx(ctx).Info().Dur("waited", time.Since(began)).Msg("result reported")
			}
			d.forget()
			return
		}
		if backoff == leaseBackoff {
			zerolog.Ctx(ctx).Warn().Err(err).Msg("report result, until it is answered")
		}
		if refused(err) {
			if d.forget(); d.Result.Ending == jobs.HostResources {
				return // not even that: the dispatcher takes the attempt back when no heartbeat names it
			}
			d.Result = instead(d.Result, fmt.Errorf("the result could not be reported: %w", err))
			continue
		}
		if d.name == "" {
			if spooled, err := w.spool(d.Report, nil); err != nil {
				zerolog.Ctx(ctx).Error().Err(err).Msg("spool result")
			} else {
				d = spooled
			}
		}
		if ctx.Err() != nil || d.name != "" && w.leaves(ctx, drain) {
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
