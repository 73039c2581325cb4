package api

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"github.com/paddockvm/paddock/jobs"
)

// failure is an error with a status that its code alone does not tell.
type failure struct {
	status int
	is     *jobs.Error
}

func (f *failure) Error() string { return f.is.Error() }
func (f *failure) Unwrap() error { return f.is }

func refuse(status int, code jobs.Code, message string) error {
	return &failure{status, &jobs.Error{Code: code, Message: message}}
}

// later is refuse for what may succeed after a while.
func later(status int, code jobs.Code, message string) error {
	return &failure{status, &jobs.Error{Code: code, Message: message, RetryAfterMS: 2000}}
}

var (
	errBusy   = later(http.StatusServiceUnavailable, jobs.CodeUnavailable, "too many passwords are being checked")
	errNobody = refuse(http.StatusUnauthorized, jobs.CodeForbidden, "give a name and a password that are let in, by HTTP Basic authentication")
)

// statuses are those of the codes that a Source may give. Others are ours to explain.
var statuses = map[jobs.Code]int{
	jobs.CodeInvalid: http.StatusBadRequest, jobs.CodeForbidden: http.StatusForbidden, jobs.CodeNotFound: http.StatusNotFound,
	jobs.CodeQuota: http.StatusTooManyRequests, jobs.CodeUnavailable: http.StatusServiceUnavailable, jobs.CodeQueueFull: http.StatusServiceUnavailable,
}

// fail answers with an error. Nothing may have been written before.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	e := jobs.ErrorOf(err)
	status := statuses[e.Code]
	if f, ok := errors.AsType[*failure](err); ok {
		status = f.status
	}
	switch {
	case r.Context().Err() != nil:
		abort() // the server stops, or nobody is there any more
	case status == 0:
		status = http.StatusInternalServerError
		s.c.Log.Error().Err(err).Str("path", r.URL.Path).Msg("http: internal error")
	case status == http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", `Basic realm="paddock", charset="UTF-8"`)
	}
	if e.RetryAfterMS > 0 {
		w.Header().Set("Retry-After", strconv.FormatInt((e.RetryAfterMS+999)/1000, 10))
	}
	s.metrics.refused.WithLabelValues(string(e.Code)).Inc()
	headers(w, "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(e) // whoever asked may be gone
}

// headers are what every answer has: it is of this moment, and what it says it is, and no page of another origin has any part of it.
func headers(w http.ResponseWriter, contentType string) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Cache-Control", "no-cache")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
}
