package origin

import (
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
)

func TestCredentialHelper(t *testing.T) {
	dir := t.TempDir()
	helper := filepath.Join(dir, "docker-credential-probe")
	script := "#!/bin/sh\nread server\n[ \"$server\" = " + testRegistry + " ] && echo '{\"Username\":\"bob\",\"Secret\":\"secret\"}' || { echo 'credentials not found in native keychain'; exit 1; }\n"
	if err := os.WriteFile(helper, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	k := newKeyring(mustWrite(t, "c.json", `{"credsStore":"probe"}`))
	cred, err := k.find(t.Context(), keyNames("nobody.example", &url.URL{Scheme: "https", Host: testRegistry}), "")
	if err != nil || cred.Username != "bob" || cred.Password != "secret" {
		t.Errorf("got user %q, %v", cred.Username, err)
	}
}

// What the file holds now counts, not what it held when the client was made.
func TestDockerConfigIsReadAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, bearerChallenge)
		file := filepath.Join(t.TempDir(), "config.json")
		c := testClient(t, w.net, func(c *Config) { c.DockerConfig = file })
		resp, err := c.Head(t.Context(), tagRef("v1"), nil)
		if code := status(t, resp, err); code != http.StatusUnauthorized {
			t.Errorf("no file yet: %d", code)
		}
		if err := os.WriteFile(file, []byte(dockerAuth(testRegistry, "bob:secret")), 0o600); err != nil {
			t.Fatal(err)
		}
		pass(memoLife)
		resp, err = c.Head(t.Context(), tagRef("v1"), nil)
		if code := status(t, resp, err); code != http.StatusOK {
			t.Errorf("with the file: %d", code)
		}
	})
}

// A credential that was refused is looked for again at once: it may have been
// renewed meanwhile, as those of ECR are twice a day.
func TestRefusedCredentialIsLookedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, bearerChallenge)
		file := mustWrite(t, "config.json", dockerAuth(testRegistry, "bob:old"))
		c := testClient(t, w.net, func(c *Config) { c.DockerConfig = file })
		resp, err := c.Head(t.Context(), tagRef("v1"), nil)
		if code := status(t, resp, err); code != http.StatusUnauthorized {
			t.Errorf("with the old one: %d", code)
		}
		if err := os.WriteFile(file, []byte(dockerAuth(testRegistry, "bob:secret")), 0o600); err != nil {
			t.Fatal(err)
		}
		resp, err = c.Head(t.Context(), tagRef("v1"), nil)
		if code := status(t, resp, err); code != http.StatusOK {
			t.Errorf("with the new one: %d", code)
		}
	})
}

func TestDockerHubKeys(t *testing.T) {
	for _, key := range []string{"https://index.docker.io/v1/", "docker.io", "index.docker.io"} {
		k := newKeyring(mustWrite(t, "c.json", dockerAuth(key, "bob:secret")))
		cred, err := k.find(t.Context(), keyNames(dockerHub, defaultEndpoint(dockerHub)), "")
		if err != nil || cred.Username != "bob" {
			t.Errorf("under %s: %q, %v", key, cred.Username, err)
		}
	}
}
