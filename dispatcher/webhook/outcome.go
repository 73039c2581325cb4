package webhook

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// schedule is how long after the try before each try is made: 75.6 hours in all, as Standard Webhooks proposes.
var schedule = []time.Duration{
	0, 5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour, 10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour,
}

const (
	// maxRetryAfter bounds what a server may ask for.
	maxRetryAfter = 24 * time.Hour
	// throttled is how long a server that answers 429 is left alone where it does not say.
	throttled = 5 * time.Second
)

// outcome is what a try came to.
type outcome struct {
	// class is "2xx", "3xx", "4xx", "5xx", "gone", "throttled", or what came in place of an answer: "timeout", "forbidden", "dns", "tls", "refused",
	// "network". It is a metric's label.
	class string
	// status is the answer's; 0 where there was none.
	status int
	// text says why it failed, to the tenant: with nothing of what the dispatcher's own network is like.
	text string
	// after is how long the server asks to be left alone.
	after    time.Duration
	response string
}

func (o *outcome) ok() bool { return o.class == "2xx" }

// answered judges an answer by its status. 2xx is success and nothing else is.
func answered(r *http.Response, now time.Time) outcome {
	o := outcome{status: r.StatusCode, class: strconv.Itoa(r.StatusCode/100) + "xx"}
	switch {
	case o.ok():
		return o
	case r.StatusCode == http.StatusGone:
		o.class, o.text = "gone", "answered 410: it wants no more"
	case r.StatusCode == http.StatusTooManyRequests:
		o.class, o.text, o.after = "throttled", "answered 429: too many requests", throttled
	case o.class == "3xx":
		o.text = fmt.Sprintf("answered %d; redirects are not followed", r.StatusCode)
	default:
		o.text = fmt.Sprintf("answered %d", r.StatusCode)
	}
	if after := retryAfter(r.Header.Get("Retry-After"), now); after > 0 {
		o.after = min(after, maxRetryAfter)
	}
	return o
}

// retryAfter reads the header: seconds, or a date (RFC 9110 §10.2.3). 0: there is none that can be read.
func retryAfter(v string, now time.Time) time.Duration {
	if n, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if at, err := http.ParseTime(v); err == nil {
		return at.Sub(now)
	}
	return 0
}

// unanswered judges what came in place of an answer.
func unanswered(err error) outcome {
	var (
		dns     *net.DNSError
		cert    *tls.CertificateVerificationError
		alert   tls.AlertError
		record  tls.RecordHeaderError
		invalid x509.CertificateInvalidError
		timeout net.Error
		errno   syscall.Errno
	)
	switch {
	case errors.Is(err, errForbidden):
		return outcome{class: "forbidden", text: "the host is " + errForbidden.Error()}
	case errors.As(err, &dns): // a timeout too: the host was not asked
		return outcome{class: "dns", text: "the host's name cannot be resolved"}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return outcome{class: "timeout", text: "did not answer in time"}
	case errors.As(err, &cert):
		return outcome{class: "tls", text: fmt.Sprintf("TLS: %.200v", cert.Err)}
	case errors.As(err, &invalid), errors.As(err, &alert), errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return outcome{class: "tls", text: "TLS: the handshake failed"}
	case errors.Is(err, syscall.ECONNREFUSED):
		return outcome{class: "refused", text: "connection refused"}
	case errors.As(err, &errno):
		return outcome{class: "network", text: errno.Error()}
	}
	return outcome{class: "network", text: "the connection ended before an answer"}
}

// readable makes text of what a server sent: valid UTF-8 without NUL.
func readable(b []byte) string {
	return strings.ReplaceAll(strings.ToValidUTF8(string(b), "\uFFFD"), "\x00", "\uFFFD")
}
