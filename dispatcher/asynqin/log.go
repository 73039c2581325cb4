package asynqin

import (
	"fmt"

	"github.com/hibiken/asynq"
	"github.com/rs/zerolog"
)

// logger takes what asynq says. Its warnings are about single tasks that failed, as programs do; its errors about Redis, which heal, or
// about a handler that panicked.
type logger struct{ zerolog.Logger }

var _ asynq.Logger = logger{}

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
func (l logger) Error(args ...any) { l.say(l.Logger.Warn(), args) }
func (l logger) Fatal(args ...any) { l.say(l.Logger.Error(), args) }
