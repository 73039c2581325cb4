package asynqin

import (
	"github.com/hibiken/asynq"
	"github.com/rs/zerolog"
)

// Loggers gives what asynq's servers have for logging, of several tenants.
func Loggers(log zerolog.Logger, tenants int) (l []asynq.Logger) {
	room := newRoom()
	for range tenants {
		l = append(l, logger{log, room})
	}
	return l
}
