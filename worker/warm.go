package worker

import (
	"context"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// warmth is what is known of the pool of an image that is to be kept warm.
type warmth struct {
	opening bool
	digest  string    // of which it was opened last
	rests   time.Time // after a failure: not before
	rested  time.Duration
}

// mostUnwarmed bounds how long an image whose pool cannot be opened rests until it is tried again.
const mostUnwarmed = 5 * time.Minute

// warmUp opens the pools of the images that are to be kept warm, and opens them anew where an image has been built anew, has come, or where its
// template had gone or could not be made. Whoever calls it waits for what it starts.
func (ps *pools) warmUp(ctx context.Context, starts *sync.WaitGroup) {
	for _, image := range ps.cfg.Warm {
		if digest, cold := ps.cold(image); cold {
			starts.Go(func() { ps.warmOne(ctx, image, digest) })
		}
	}
}

// cold tells whether an image's pool is to be opened, which its caller then does.
func (ps *pools) cold(image string) (digest string, _ bool) {
	digest = ps.offered(image).Digest
	key := poolKey{image, digest, ps.own(image)}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	w := ps.warmths[image]
	if w == nil {
		w = &warmth{}
		ps.warmths[image] = w
	} else if digest == "" { // that it is not there has been told
		return "", false
	}
	done := ps.pools[key] != nil || w.digest == digest && digest != "" && ps.cfg.Ready == 0 // of which nothing need be ready
	if done || w.opening || time.Now().Before(w.rests) {
		return "", false
	}
	w.opening = true
	return digest, true
}

func (ps *pools) warmOne(ctx context.Context, image, digest string) {
	_, err := ps.of(ctx, image, ps.own(image))
	if err != nil && ctx.Err() == nil {
		zerolog.Ctx(ctx).Error().Err(err).Str("image", image).Msg("cannot warm image")
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	w := ps.warmths[image]
	w.opening = false
	if err != nil && digest != "" {
		w.rested = min(max(2*w.rested, tendEvery), mostUnwarmed)
		w.rests = time.Now().Add(w.rested)
		return
	}
	w.digest, w.rested = digest, 0
}
