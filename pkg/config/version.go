package config

import (
	"runtime/debug"
	"strings"
)

// Build says which program this is, as the Go toolchain recorded it.
type Build struct {
	// Version is the module's version, or "devel".
	Version string
	// Revision is the commit, with "+dirty" if the tree was changed, or empty
	// if it was not recorded.
	Revision string
	// GoVersion is the toolchain, such as go1.26.8.
	GoVersion string
}

// ReadBuild reads the running program's build.
func ReadBuild() Build {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return Build{Version: "devel", GoVersion: "unknown"}
	}
	return buildOf(info)
}

func buildOf(info *debug.BuildInfo) Build {
	b := Build{Version: info.Main.Version, GoVersion: info.GoVersion}
	if b.Version == "" || b.Version == "(devel)" {
		b.Version = "devel"
	}
	changed := false
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.modified":
			changed = s.Value == "true"
		}
	}
	if changed && b.Revision != "" {
		b.Revision += "+dirty"
	}
	return b
}

// String is one line, such as "v0.2.0 (3f2a91c0d1e2, go1.26.8)".
func (b Build) String() string {
	revision, dirty := strings.CutSuffix(b.Revision, "+dirty")
	if len(revision) > 12 {
		revision = revision[:12]
	}
	if dirty {
		revision += "+dirty"
	}
	if revision != "" {
		revision += ", "
	}
	return b.Version + " (" + revision + b.GoVersion + ")"
}
