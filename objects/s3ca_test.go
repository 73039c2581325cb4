package objects_test

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/objects"
	"github.com/paddockvm/paddock/objects/objectstest"
	"github.com/paddockvm/paddock/test/harness"
)

// Where an authority of one's own has signed S3's certificate, whoever is let at an object trusts it too, and nobody else.
func TestS3OwnAuthority(t *testing.T) {
	server := harness.StartS3(t)
	p := startProxy(t, server.Endpoint, httptest.NewTLSServer)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := objects.NewS3(objects.S3Config{
		Endpoint: p.URL, Bucket: server.Bucket, Region: "us-east-1", Credentials: server.Credentials, PathStyle: true, Dir: t.TempDir(), CA: ca,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	// sent is what comes out of a grant at the other end of the line.
	sent := func(g *objects.Granted, err error) *objects.Granted {
		t.Helper()
		if err != nil || g == nil {
			t.Fatal(g, err)
		}
		data, err := json.Marshal(g)
		if err != nil {
			t.Fatal(err)
		}
		there := new(objects.Granted)
		if err := json.Unmarshal(data, there); err != nil {
			t.Fatal(err)
		}
		return there
	}
	content := []byte("of a worker")
	name := objectstest.Digest(content)
	if err := sent(s.PutURL(t.Context(), "a", name, int64(len(content)))).Put(t.Context(), bytes.NewReader(content), int64(len(content))); err != nil {
		t.Fatal(err)
	}
	get := sent(s.GetURL(t.Context(), "a", name))
	r, err := get.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if b, err := io.ReadAll(r); err != nil || !bytes.Equal(b, content) {
		t.Errorf("got %q, %v", b, err)
	}
	get.CA = ""
	if _, err := get.Get(t.Context()); objectstest.Code(err) != jobs.CodeUnavailable {
		t.Errorf("without the authority: got %v, want unavailable", err)
	} else if !strings.Contains(err.Error(), "certificate") {
		t.Errorf("it does not say why: %v", err)
	}
	get.CA = "no certificate"
	if _, err := get.Get(t.Context()); err == nil {
		t.Error("something else is an authority")
	}
}
