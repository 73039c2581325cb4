package asynqin

import (
	"fmt"
	"time"

	"github.com/hibiken/asynq"
	"github.com/rs/zerolog"
	"golang.org/x/time/rate"
)

// logger takes what asynq says. Its warnings are about single tasks that failed, as programs do; its errors about Redis, which heal, or
// about a handler that panicked.
type logger struct {
	zerolog.Logger
	// room bounds the latter, of all tenants together: while Redis is away each tenant's server says so several times a second. What is more can
	// be seen with what is for debugging.
	room *rate.Limiter
}

var _ asynq.Logger = logger{}

const (
	// errorEvery is how often one of asynq's errors is logged, after the first ones.
	errorEvery  = 10 * time.Second
	firstErrors = 10
)

func newRoom() *rate.Limiter { return rate.NewLimiter(rate.Every(errorEvery), firstErrors) }

// maxLine bounds a line: asynq names every task of a lease that it could not extend.
const maxLine = 1000

func (l logger) say(e *zerolog.Event, args []any) {
	text := fmt.Sprint(args...)
	if len(text) > maxLine {
		text = text[:maxLine] + "…"
	}
	e.Str("asynq", text).Msg("asynq says")
}

func (l logger) Debug(args ...any) { l.say(l.Logger.Debug(), args) }
func (l logger) Info(args ...any)  { l.say(l.Logger.Debug(), args) }
func (l logger) Warn(args ...any)  { l.say(l.Logger.Debug(), args) }

// Error implements asynq.Logger.
func (l logger) Error(args ...any) {
	if !l.room.Allow() {
		l.Debug(args...)
		return
	}
	l.say(l.Logger.Warn(), args)
}

func (l logger) Fatal(args ...any) { l.say(l.Logger.Error(), args) }
