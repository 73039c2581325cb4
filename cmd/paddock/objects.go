package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/paddockvm/paddock/objects"
)

// objectsConfig is what a dispatcher can be told of what is too large for a message. It is a part of config.
type objectsConfig struct {
	Objects              string        `koanf:"objects"`
	ObjectsKeep          time.Duration `koanf:"objects_keep"`
	ObjectsS3Endpoint    string        `koanf:"objects_s3_endpoint"`
	ObjectsS3Bucket      string        `koanf:"objects_s3_bucket"`
	ObjectsS3Prefix      string        `koanf:"objects_s3_prefix"`
	ObjectsS3Region      string        `koanf:"objects_s3_region"`
	ObjectsS3Credentials string        `koanf:"objects_s3_credentials"`
	ObjectsS3CA          string        `koanf:"objects_s3_ca"`
	ObjectsS3PathStyle   bool          `koanf:"objects_s3_path_style"`
	ObjectsS3TenantMiB   int           `koanf:"objects_s3_tenant_mib"`
}

func addObjectsFlags(c *cobra.Command) {
	addChoice(c, "objects", "", "jetstream", "what keeps files that are too large for a message", "jetstream", "s3")
	f := c.Flags()
	f.Duration("objects-keep", 7*24*time.Hour, "how long an object stays that no job names any more, from when it was put last")
	f.String("objects-s3-endpoint", "", "URL of the S3 store, without the bucket; workers reach it there too")
	f.String("objects-s3-bucket", "", "its bucket, which has to be there")
	f.String("objects-s3-prefix", "", "what begins all keys")
	f.String("objects-s3-region", "", "its region, where the store wants to be told")
	f.String("objects-s3-credentials", "", "file with the key, profile default, as the AWS tools write it (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)")
	f.String("objects-s3-ca", "", "certificates of the authorities for https, which workers are told too (the system's, of each)")
	f.Bool("objects-s3-path-style", false, "the bucket stands in the path, not in the host's name")
	f.Int("objects-s3-tenant-mib", 4096, "what a tenant's objects may take in S3, in MiB; 0 is no bound")
}

// s3 gives the S3 store that the configuration names; nil where JetStream keeps objects.
func (c objectsConfig) s3(stateDir string) (*objects.S3, error) {
	if c.Objects != "s3" {
		if c.ObjectsS3Endpoint != "" {
			return nil, fmt.Errorf("objects_s3_endpoint names a store, and objects is %q: want s3", c.Objects)
		}
		return nil, nil //nolint:nilnil // of none, none
	}
	s, err := objects.NewS3(objects.S3Config{
		Endpoint: c.ObjectsS3Endpoint, Bucket: c.ObjectsS3Bucket, Prefix: c.ObjectsS3Prefix, Region: c.ObjectsS3Region, Credentials: c.ObjectsS3Credentials,
		CA: c.ObjectsS3CA, PathStyle: c.ObjectsS3PathStyle, TenantBytes: int64(c.ObjectsS3TenantMiB) << 20, Dir: spoolDir(stateDir),
		AccessKey: os.Getenv("AWS_ACCESS_KEY_ID"), SecretKey: os.Getenv("AWS_SECRET_ACCESS_KEY"), Token: os.Getenv("AWS_SESSION_TOKEN"), // no configuration: it would be printed
	})
	if err != nil {
		return nil, fmt.Errorf("%w; see objects_s3_endpoint and the keys after it", err)
	}
	return s, nil
}

// spoolDir is where what is on its way into the store of objects waits. Its files have no names.
func spoolDir(stateDir string) string { return filepath.Join(stateDir, "spool") }
