package image

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/image-spec/specs-go/v1"
)

// ParsePlatform reads "os/arch" or "os/arch/variant". The names that uname and
// Docker use for an architecture are understood.
func ParsePlatform(s string) (specs.Platform, error) {
	parts := strings.Split(s, "/")
	if len(parts) < 2 || len(parts) > 3 || slices.Contains(parts, "") {
		return specs.Platform{}, fmt.Errorf("platform %q: want os/arch or os/arch/variant, such as linux/amd64 or linux/arm/v7", s)
	}
	p := specs.Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	return normal(p), nil
}

// LocalPlatform is what images run on on a machine whose Go names are os and
// arch: Linux wherever containers run in a virtual machine.
func LocalPlatform(os, arch string) specs.Platform {
	if os != "windows" {
		os = "linux"
	}
	return normal(specs.Platform{OS: os, Architecture: arch})
}

// FormatPlatform writes p as os/arch[/variant].
func FormatPlatform(p specs.Platform) string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// normal gives each platform one spelling, the one of containerd: arm64 alone
// means v8, arm alone v7, amd64 alone v1.
func normal(p specs.Platform) specs.Platform {
	p.OS = strings.ToLower(p.OS)
	p.Architecture = strings.ToLower(p.Architecture)
	p.Variant = strings.ToLower(p.Variant)
	switch p.Architecture {
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "i386", "i486", "i586", "i686":
		p.Architecture = "386"
	case "aarch64":
		p.Architecture = "arm64"
	case "armhf":
		p.Architecture, p.Variant = "arm", "v7"
	case "armel":
		p.Architecture, p.Variant = "arm", "v6"
	}
	switch {
	case p.Architecture == "amd64" && p.Variant == "v1":
		p.Variant = ""
	case p.Architecture == "arm64" && (p.Variant == "v8" || p.Variant == "8"):
		p.Variant = ""
	case p.Architecture == "arm" && p.Variant == "":
		p.Variant = "v7"
	case len(p.Variant) == 1 && p.Variant[0] >= '0' && p.Variant[0] <= '9':
		p.Variant = "v" + p.Variant
	}
	return p
}

// level orders the variants of one architecture, each able to run those below
// it; ok is false for a variant without such an order.
func level(p specs.Platform) (n int, ok bool) {
	order := map[string][]string{
		"amd64": {"", "v2", "v3", "v4"},
		"arm":   {"v5", "v6", "v7", "v8"},
	}[p.Architecture]
	n = slices.Index(order, p.Variant)
	return n, n >= 0
}

// Matches tells whether an image for have runs where want is asked for, and how
// well: a greater rank suits better.
func Matches(want, have specs.Platform) (rank int, ok bool) {
	want, have = normal(want), normal(have)
	if want.OS != have.OS || want.Architecture != have.Architecture {
		return 0, false
	}
	if want.Variant == have.Variant {
		return 100, true
	}
	w, okWant := level(want)
	h, okHave := level(have)
	if !okWant || !okHave || h > w {
		return 0, false
	}
	return h, true
}

// Choose returns the manifest of index that suits want best; or the only one, where that
// names no platform, for its config does. Without one the error tells what there is.
func Choose(index *specs.Index, want specs.Platform) (specs.Descriptor, error) {
	best, bestRank := -1, -1
	var there []string
	var unnamed []specs.Descriptor
	for i, d := range index.Manifests {
		if d.Platform == nil || d.Platform.OS == "" && d.Platform.Architecture == "" {
			unnamed = append(unnamed, d)
			continue
		}
		// Attestations travel in the index as manifests of an unknown platform.
		if d.Platform.OS == "unknown" {
			continue
		}
		if name := FormatPlatform(*d.Platform); !slices.Contains(there, name) {
			there = append(there, name)
		}
		if rank, ok := Matches(want, *d.Platform); ok && rank > bestRank {
			best, bestRank = i, rank
		}
	}
	if best >= 0 {
		return index.Manifests[best], nil
	}
	if len(there) == 0 && len(unnamed) == 1 {
		return unnamed[0], nil
	}
	switch {
	case len(unnamed) == 1:
		there = append(there, "a manifest that names no platform")
	case len(unnamed) > 1:
		there = append(there, fmt.Sprintf("%d manifests that name no platform", len(unnamed)))
	case len(there) == 0:
		there = append(there, "no image at all")
	}
	return specs.Descriptor{}, &PlatformError{Want: want, Have: strings.Join(there, ", ")}
}

// PlatformError says that an image does not exist for a platform.
type PlatformError struct {
	Want specs.Platform
	Have string // what there is instead, for people
}

func (e *PlatformError) Error() string {
	return fmt.Sprintf("there is no image for platform %s; found: %s", FormatPlatform(e.Want), e.Have)
}

// ConfigPlatform reads the platform from the config of a container image.
func ConfigPlatform(config []byte) (specs.Platform, error) {
	var p specs.Platform
	if err := json.Unmarshal(config, &p); err != nil {
		return p, fmt.Errorf("%w: config: %w", ErrFormat, err)
	}
	return p, nil
}
