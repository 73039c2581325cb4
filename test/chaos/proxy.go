package chaos

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// link is a proxy in this process between two of the fleet's. It is for one goroutine at a time.
type link struct {
	from, to, addr, upstream string

	s *toxiproxy.ApiServer
	p *toxiproxy.Proxy
}

// open listens for from, and connects to to.
func (l *link) open() error {
	l.p = toxiproxy.NewProxy(l.s, l.from+"-"+l.to, l.addr, l.upstream)
	if err := l.p.Start(); err != nil {
		return fmt.Errorf("proxy from %s to %s: %w", l.from, l.to, err)
	}
	return nil
}

func newProxies() *toxiproxy.ApiServer {
	return toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
}

// toxic puts something in the way, in both directions.
func (l *link) toxic(kind string, attributes map[string]int) error {
	for _, stream := range []string{"upstream", "downstream"} {
		b, err := json.Marshal(map[string]any{"type": kind, "stream": stream, "attributes": attributes})
		if err != nil {
			return err
		}
		if _, err := l.p.Toxics.AddToxicJson(strings.NewReader(string(b))); err != nil {
			return fmt.Errorf("%s between %s and %s: %w", kind, l.from, l.to, err)
		}
	}
	return nil
}

// cut refuses connections and breaks those that there are.
func (l *link) cut() { l.p.Stop() }

// silence lets nothing through and says nothing: connections seem to live.
func (l *link) silence() error { return l.toxic("timeout", map[string]int{"timeout": 0}) }

// slow delays everything, by so many milliseconds and up to so many more or less.
func (l *link) slow(ms, jitter int) error {
	return l.toxic("latency", map[string]int{"latency": ms, "jitter": jitter})
}

// renew lets everything through again. Connections that were there are broken: what got lost on them is not to come later. It is another
// proxy then: toxics that are taken away first let through what they hold, each piece in its time, which may be minutes.
func (l *link) renew() error {
	l.cut()
	return l.open()
}
