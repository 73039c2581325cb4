package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/paddockvm/paddock/jobs"
)

// defaultTenant is who is asked for where everybody may ask for everybody.
const defaultTenant = "default"

// admit says whose jobs a request may watch, and on what grounds.
func (s *Server) admit(r *http.Request) (tenant string, g Grant, err error) {
	if err := s.fromPage(r); err != nil {
		return "", g, err
	}
	tenant = r.URL.Query().Get("tenant")
	if s.c.Access != nil {
		if g, err = s.authenticate(r); err != nil {
			return "", g, err
		}
	}
	switch {
	case g.Tenant != "" && tenant != "" && tenant != g.Tenant:
		return "", g, refuse(http.StatusForbidden, jobs.CodeForbidden, "a tenant watches its own jobs only")
	case g.Tenant != "":
		return g.Tenant, g, nil
	case tenant == "" && s.c.Access == nil:
		return defaultTenant, g, nil
	case tenant == "":
		return "", g, invalid("tenant", "say whose job it is: ?tenant=NAME")
	}
	return tenant, g, jobs.ValidTenant(tenant)
}

// fromPage keeps pages out that are no part of what is served here. The browsers of today say which those are. An older one has no such
// header, and where everybody is let in there are no credentials that a page of another origin would not have: a name that its owner has let
// lead to this host (DNS rebinding) makes it the same origin, but the name is none of this host's own.
func (s *Server) fromPage(r *http.Request) error {
	site, origin := r.Header.Get("Sec-Fetch-Site"), r.Header.Get("Origin")
	if site == "cross-site" || site == "same-site" || origin != "" && site != "same-origin" && !sameHost(origin, r.Host) {
		return refuse(http.StatusForbidden, jobs.CodeForbidden, "pages of another origin may not read this: let the page's own server pass it on")
	}
	if s.c.Access == nil && s.local && !loopbackName(r.Host) {
		return refuse(http.StatusForbidden, jobs.CodeForbidden, fmt.Sprintf("this server is its host's alone, and %.80q none of its names: ask for localhost or 127.0.0.1", r.Host))
	}
	return nil
}

func sameHost(origin, host string) bool {
	u, err := url.Parse(origin)
	return err == nil && strings.EqualFold(u.Host, host)
}

// loopbackName tells whether a request's Host leads to the host that it comes from, whoever is asked: localhost (RFC 6761), or an address.
func loopbackName(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}

// authenticate asks who it is. Passwords are checked a few at a time, and nothing of them is kept.
func (s *Server) authenticate(r *http.Request) (Grant, error) {
	user, password, given := r.BasicAuth()
	if !given {
		return Grant{}, errNobody
	}
	select {
	case s.waiting <- struct{}{}:
		defer func() { <-s.waiting }()
	default:
		return Grant{}, errBusy
	}
	select {
	case s.checking <- struct{}{}:
		defer func() { <-s.checking }()
	case <-r.Context().Done():
		return Grant{}, context.Cause(r.Context())
	}
	g, err := s.c.Access.Authenticate(user, password)
	if err == nil {
		return g, nil
	}
	s.c.Log.Warn().Err(err).Str("from", r.RemoteAddr).Msg("http: a client was not let in")
	if _, known := errors.AsType[*jobs.Error](err); known {
		return g, err
	}
	return g, errNobody // why is nobody's business
}

// viewer is one stream.
type viewer struct {
	tenant string
	grant  Grant
	end    context.CancelFunc
}

// enter counts a viewer, where there is room for it.
func (s *Server) enter(v *viewer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case len(s.viewers) >= s.c.Viewers:
		return later(http.StatusTooManyRequests, jobs.CodeQuota, fmt.Sprintf("%d streams are open, as many as there may be", len(s.viewers)))
	case s.of[v.tenant] >= s.c.TenantViewers:
		return later(http.StatusTooManyRequests, jobs.CodeQuota, fmt.Sprintf("%d streams of this tenant's jobs are open, as many as there may be", s.of[v.tenant]))
	}
	s.viewers[v] = true
	s.of[v.tenant]++
	s.metrics.viewers.Inc()
	return nil
}

func (s *Server) leave(v *viewer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.viewers, v)
	if s.of[v.tenant]--; s.of[v.tenant] == 0 {
		delete(s.of, v.tenant)
	}
	s.metrics.viewers.Dec()
}

// holds tells whether the grounds are still there on which somebody watches. It is asked once the viewer is counted: what changes later
// is Recheck's.
func (v *viewer) holds() bool { return v.grant.Holds == nil || v.grant.Holds() }

// Recheck ends the streams of those whose grants are not in force any more.
func (s *Server) Recheck() {
	s.mu.Lock()
	var all []*viewer
	for v := range s.viewers {
		all = append(all, v)
	}
	s.mu.Unlock()
	for _, v := range slices.DeleteFunc(all, (*viewer).holds) {
		v.end()
	}
}
