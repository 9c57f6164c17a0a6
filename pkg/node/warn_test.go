package node

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// Who opens a node to the network, or its token to the machine, is told so.
func TestOpenSettingsAreWarnedOf(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	warned := func(c Config) (settings []string) {
		core, logs := observer.New(zapcore.WarnLevel)
		warn(c, zap.New(core))
		for _, e := range logs.All() {
			settings = append(settings, e.ContextMap()["setting"].(string))
		}
		return settings
	}
	c := DefaultConfig()
	c.Scheduler, c.TokenFile = Addresses{"s:1"}, token
	for _, loopback := range []string{"127.0.0.1:1", "[::1]:1", "localhost:1", "10.0.0.1:1"} {
		c.Mirror.Listen = loopback
		if got := warned(c); len(got) > 0 {
			t.Errorf("warned of %v at %s", got, loopback)
		}
	}
	if err := os.Chmod(token, 0o640); err != nil {
		t.Fatal(err)
	}
	c.Mirror.Listen, c.Mirror.DockerHub, c.Proxy.Listen = "0.0.0.0:1", ":2", "[::]:3"
	c.Mirror.Registries = []RegistryConfig{{Name: "a.example", Listen: "127.0.0.1:4"}, {Name: "b.example", Listen: "0.0.0.0:5"}}
	want := []string{"mirror.listen", "mirror.dockerHubListen", "proxy.listen", "mirror.registries[1].listen", "joinTokenFile"}
	if got := warned(c); !slices.Equal(got, want) {
		t.Errorf("warned of %v, want %v", got, want)
	}
}
