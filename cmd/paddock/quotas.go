package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/jobs"
)

// quota is a tenant's in the file that `quotas` names.
type quota struct {
	Weight      int     `yaml:"weight"`
	Queued      int     `yaml:"queued"`
	QueuedBytes int64   `yaml:"queued_bytes"`
	Running     int     `yaml:"running"`
	VCPUs       int     `yaml:"vcpus"`
	MemoryMiB   int     `yaml:"memory_mib"`
	PerSecond   float64 `yaml:"per_second"`
	Burst       int     `yaml:"burst"`
}

// quotaFile is that file.
type quotaFile struct {
	Default quota            `yaml:"default"`
	Tenants map[string]quota `yaml:"tenants"`
}

// readQuotas reads the file; no name is no bounds.
func readQuotas(name string) (q dispatcher.Quotas, err error) {
	if name == "" {
		return q, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return q, fmt.Errorf("quotas: %w", err)
	}
	defer f.Close()
	var file quotaFile
	d := yaml.NewDecoder(f)
	d.KnownFields(true)
	if err := d.Decode(&file); err != nil && !errors.Is(err, io.EOF) {
		return q, fmt.Errorf("quotas: %s: %w", name, err)
	}
	if q.Default, err = file.Default.checked("default"); err != nil {
		return q, fmt.Errorf("quotas: %s: %w", name, err)
	}
	q.Tenants = map[string]dispatcher.Quota{}
	for tenant, own := range file.Tenants {
		if err := jobs.ValidTenant(tenant); err != nil {
			return q, fmt.Errorf("quotas: %s: %w", name, err)
		}
		if q.Tenants[tenant], err = own.checked(tenant); err != nil {
			return q, fmt.Errorf("quotas: %s: %w", name, err)
		}
	}
	return q, nil
}

func (q quota) checked(whose string) (dispatcher.Quota, error) {
	for key, v := range map[string]float64{
		"weight": float64(q.Weight), "queued": float64(q.Queued), "queued_bytes": float64(q.QueuedBytes), "running": float64(q.Running),
		"vcpus": float64(q.VCPUs), "memory_mib": float64(q.MemoryMiB), "per_second": q.PerSecond, "burst": float64(q.Burst),
	} {
		if !(v >= 0) || math.IsInf(v, 1) { // what is no number is not less than 0 either
			return dispatcher.Quota{}, fmt.Errorf("%s: %s: %v: want 0 (no bound) or more", whose, key, v)
		}
	}
	return dispatcher.Quota(q), nil
}

// workerLabels reads KEY=VALUE words, and adds what every worker says of itself.
func workerLabels(words []string) (map[string]string, error) {
	labels := map[string]string{"os": runtime.GOOS, "arch": runtime.GOARCH}
	for _, word := range words {
		k, v, ok := strings.Cut(word, "=")
		if !ok {
			return nil, fmt.Errorf("label %q: want KEY=VALUE", word)
		}
		labels[k] = v
	}
	return labels, jobs.ValidLabels(labels)
}
