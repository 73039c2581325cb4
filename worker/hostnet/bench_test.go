package hostnet_test

import (
	"encoding/json"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/paddockvm/paddock/worker/hostnet"
)

// BenchmarkTake measures what a machine waits for its network: a slot from the pool, and its policy. Refilling the pool is not in it, nor
// closing. HOSTNET_SAMPLES names a file for the raw samples, in nanoseconds.
func BenchmarkTake(b *testing.B) {
	for name, p := range map[string]hostnet.Policy{
		"internet": {Kind: hostnet.Internet},
		"allowlist": {Kind: hostnet.Allowlist, Domains: []string{"pypi.org", "*.pythonhosted.org"}, Prefixes: []netip.Prefix{
			netip.MustParsePrefix(web + "/32"), netip.MustParsePrefix("45.20.9.0/24")}},
	} {
		b.Run(name, func(b *testing.B) {
			l := newLab(b)
			cfg := l.config(b)
			cfg.Slots = 4
			h := run(b, cfg)
			ready(b, h, 4)
			var samples []time.Duration
			for b.Loop() {
				begun := time.Now()
				s, err := h.Take(b.Context())
				must(b, err)
				must(b, s.Allow(b.Context(), p))
				samples = append(samples, time.Since(begun))
				b.StopTimer()
				must(b, s.Close())
				ready(b, h, 4)
				b.StartTimer()
			}
			b.StopTimer()
			raw := slices.Clone(samples)
			slices.Sort(samples)
			b.ReportMetric(float64(samples[len(samples)/2].Microseconds())/1e3, "p50-ms")
			b.ReportMetric(float64(samples[len(samples)*99/100].Microseconds())/1e3, "p99-ms")
			b.ReportMetric(float64(samples[len(samples)-1].Microseconds())/1e3, "max-ms")
			if path := os.Getenv("HOSTNET_SAMPLES"); path != "" {
				out, err := json.Marshal(map[string]any{"what": "take+allow " + name, "ns": raw})
				must(b, err)
				f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
				must(b, err)
				_, err = f.Write(append(out, '\n'))
				must(b, err)
				must(b, f.Close())
			}
		})
	}
}

// BenchmarkMake measures what the pool does for each machine: making a slot and removing it, one after the other.
func BenchmarkMake(b *testing.B) {
	l := newLab(b)
	cfg := l.config(b)
	cfg.Slots = 1
	h := run(b, cfg)
	for b.Loop() {
		s, err := h.Take(b.Context())
		must(b, err)
		must(b, s.Close())
	}
}

// BenchmarkQuestion measures a name of an allowlist, asked and answered: the server's answer, and the rules that are changed for it.
func BenchmarkQuestion(b *testing.B) {
	l := newLab(b)
	l.dns.set("ok.example.", "ok.example. 60 A "+web)
	s := take(b, run(b, l.config(b)))
	g := newGuest(b, s)
	allow(b, s, hostnet.Policy{Kind: hostnet.Allowlist, Domains: []string{"ok.example"}})
	for b.Loop() {
		if _, err := lookup(g.ns, "udp", s.Guest().DNS.String(), "ok.example.", 1, granted); err != nil {
			b.Fatal(err)
		}
	}
}

// ready waits until the pool is full again, so that every sample is of a pool and not of making.
func ready(b *testing.B, h *hostnet.Host, n int) {
	b.Helper()
	for end := time.Now().Add(30 * time.Second); h.Ready() < n; time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			b.Fatalf("%d of %d slots are ready", h.Ready(), n)
		}
	}
}
