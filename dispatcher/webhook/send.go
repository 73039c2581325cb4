package webhook

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

const (
	// answerWithin bounds a try, connecting included.
	answerWithin = 15 * time.Second
	// maxResponse is how much of an answer's body is read; bodyWithin is how long.
	maxResponse = 64 << 10
	bodyWithin  = 2 * time.Second
)

// send makes one try at a delivery. What went wrong is in the outcome.
func (s *Service) send(ctx context.Context, d *ledger.Delivery, secrets []ledger.Secret) outcome {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, d.URL, bytes.NewReader([]byte(d.Body)))
	if err != nil {
		return outcome{class: "network", text: "the URL cannot be used"}
	}
	now := time.Now()
	if err := sign(r.Header, d.ID, now, []byte(d.Body), secrets); err != nil {
		return outcome{class: "network", text: "cannot be signed: rotate the secret"}
	}
	r.Header.Set("Content-Type", contentType(d.Format))
	r.Header.Set("User-Agent", "paddock-webhook/"+jobs.Version)
	if err := s.guard.Check(d.URL); err != nil { // the operator may have become stricter
		return outcome{class: "forbidden", text: "the URL " + err.Error()}
	}
	answer, err := s.client.Do(r)
	if err != nil {
		return unanswered(err)
	}
	defer answer.Body.Close()
	o := answered(answer, now)
	o.response = readResponse(answer.Body, cancel)
	return o
}

// readResponse reads an answer's body as far as it is read, so that the connection can be used again, and gives the beginning. Its status
// has decided already: a body that does not end changes nothing.
func readResponse(body io.Reader, giveUp func()) string {
	late := time.AfterFunc(bodyWithin, giveUp)
	defer late.Stop()
	b, _ := io.ReadAll(io.LimitReader(body, jobs.MaxTryResponse))
	_, _ = io.CopyN(io.Discard, body, maxResponse-int64(len(b)))
	return readable(b)
}
