package identity

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestTokenRoundTrip(t *testing.T) {
	ca := testCA(t)
	s := testToken(t, ca, "", time.Hour, 1)
	token, err := ParseToken("  " + s + "\n")
	if err != nil {
		t.Fatal(err)
	}
	if token.reveal() != s {
		t.Fatal("token changed on its way")
	}
	if !token.pins(ca.cert) {
		t.Fatal("token does not pin the CA that made it")
	}
	for _, printed := range []string{fmt.Sprint(token), fmt.Sprintf("%+v", token), fmt.Sprintf("%#v", token), fmt.Sprint(&token)} {
		if strings.Contains(printed, token.secret) {
			t.Fatalf("token prints its secret: %s", printed)
		}
	}
}

func TestTokenRefused(t *testing.T) {
	good := testToken(t, testCA(t), RoleNode, time.Hour, 1)
	parts := strings.Split(good, ".")
	join := func(p ...string) string { return strings.Join(p, ".") }
	for name, s := range map[string]string{
		"empty":            "",
		"another version":  join("dmf2", parts[1], parts[2], parts[3]),
		"three parts":      join(parts[:3]...),
		"five parts":       good + ".x",
		"short pin":        join(parts[0], parts[1][2:], parts[2], parts[3]),
		"upper-case pin":   join(parts[0], strings.Repeat("AB", 32), parts[2], parts[3]),
		"path as ID":       join(parts[0], parts[1], "../../../etc/pass", parts[3]),
		"upper-case ID":    join(parts[0], parts[1], "ABCDEFABCDEFABCD", parts[3]),
		"no secret":        join(parts[0], parts[1], parts[2], ""),
		"short secret":     good[:len(good)-4],
		"padded secret":    good + "=",
		"space in the end": good[:len(good)-2] + " a",
	} {
		_, err := ParseToken(s)
		if err == nil {
			t.Errorf("%s: taken", name)
			continue
		}
		if parts[3] != "" && strings.Contains(err.Error(), parts[3][:20]) {
			t.Errorf("%s: the error shows the secret: %v", name, err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add("dmf1." + strings.Repeat("0", 64) + ".0123456789abcdef." + strings.Repeat("A", 43))
	f.Add("dmf1...")
	f.Add("dmf1." + strings.Repeat("0", 64) + ".0123456789abcdef." + strings.Repeat("_", 43))
	f.Fuzz(func(t *testing.T, s string) {
		token, err := ParseToken(s)
		if err != nil {
			return
		}
		if token.reveal() != strings.TrimSpace(s) {
			t.Fatalf("%q was read as another token", s)
		}
		if strings.ContainsAny(token.ID, "/.\\") {
			t.Fatalf("ID %q is not safe as a file name", token.ID)
		}
	})
}

func take(ca *CA, token Token) error {
	_, err := ca.tokens.take(token.ID, token.secret, anything, time.Now())
	return err
}

func parsedToken(t *testing.T, ca *CA, ttl time.Duration, uses int) Token {
	t.Helper()
	token, err := ParseToken(testToken(t, ca, RoleNode, ttl, uses))
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestTokenUsesAreCountedAcrossProcesses(t *testing.T) {
	ca := testCA(t)
	const uses, tries = 5, 20
	token := parsedToken(t, ca, time.Hour, uses)
	var taken atomic.Int32
	var group sync.WaitGroup
	for range tries {
		// A CA of its own for each, as another process would have.
		other, err := OpenCA(ca.dir)
		if err != nil {
			t.Fatal(err)
		}
		group.Go(func() {
			switch err := take(other, token); {
			case err == nil:
				taken.Add(1)
			case !errors.Is(err, errTokenUsedUp):
				t.Errorf("take: %v", err)
			}
		})
	}
	group.Wait()
	if taken.Load() != uses {
		t.Fatalf("a token with %d uses was used %d times", uses, taken.Load())
	}
}

func TestTokenReasons(t *testing.T) {
	ca := testCA(t)
	token := parsedToken(t, ca, time.Hour, 1)
	wrong := token
	wrong.secret = strings.Repeat("A", 43)
	if err := take(ca, wrong); !errors.Is(err, errTokenSecret) {
		t.Errorf("wrong secret: %v", err)
	}
	if err := take(ca, token); err != nil {
		t.Errorf("good token after a wrong guess: %v", err)
	}
	if err := take(ca, token); !errors.Is(err, errTokenUsedUp) {
		t.Errorf("second use of one: %v", err)
	}
	revoked := parsedToken(t, ca, time.Hour, 1)
	if err := ca.RevokeToken(revoked.reveal()); err != nil {
		t.Fatal(err)
	}
	if err := take(ca, revoked); !errors.Is(err, errTokenUnknown) {
		t.Errorf("revoked: %v", err)
	}
	if err := ca.RevokeToken(revoked.ID); err == nil {
		t.Error("revoking what is not there says nothing")
	}
	for _, id := range []string{"", "../" + token.ID, "*", strings.Repeat("a", 1<<16)} {
		if _, err := ca.tokens.take(id, token.secret, anything, time.Now()); !errors.Is(err, errTokenUnknown) {
			t.Errorf("ID %q: %v", clip(id), err)
		}
		if err := ca.RevokeToken(id); err == nil {
			t.Errorf("revoked %q", clip(id))
		}
	}
}

func TestTokenExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := testCA(t)
		token := parsedToken(t, ca, time.Hour, 2)
		<-time.After(time.Hour - time.Second)
		if err := take(ca, token); err != nil {
			t.Fatalf("a second before its end: %v", err)
		}
		<-time.After(time.Second)
		if err := take(ca, token); !errors.Is(err, errTokenExpired) {
			t.Fatalf("at its end: %v", err)
		}
		// It is listed for a while, then goes.
		if infos, err := ca.Tokens(); err != nil || len(infos) != 1 || infos[0].Uses != 1 {
			t.Fatalf("expired token is listed as %+v, %v", infos, err)
		}
		<-time.After(keepExpired + time.Hour)
		fresh := parsedToken(t, ca, time.Hour, 1)
		if infos, err := ca.Tokens(); err != nil || len(infos) != 1 || infos[0].ID != fresh.ID {
			t.Fatalf("tokens after a week: %+v, %v", infos, err)
		}
	})
}

func TestTokenIsStoredHashed(t *testing.T) {
	ca := testCA(t)
	token := parsedToken(t, ca, time.Hour, 3)
	path := filepath.Join(ca.dir, tokensDir, token.ID+tokenSuffix)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(content), token.secret) {
		t.Fatal("the secret is on disk")
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("token file has mode %v, %v", info.Mode(), err)
	}
	infos, err := ca.Tokens()
	if err != nil || len(infos) != 1 || infos[0].ID != token.ID || infos[0].Role != RoleNode || infos[0].Uses != 3 {
		t.Fatalf("listed as %+v, %v", infos, err)
	}
}

func TestTokenLimits(t *testing.T) {
	ca := testCA(t)
	for name, make := range map[string]func() (string, error){
		"scheduler, for long": func() (string, error) { return ca.NewToken(RoleScheduler, MaxSchedulerTokenTTL+1, 1) },
		"scheduler, two uses": func() (string, error) { return ca.NewToken(RoleScheduler, time.Hour, 2) },
		"anybody":             func() (string, error) { return ca.NewToken(Anybody, time.Hour, 1) },
		"no time":             func() (string, error) { return ca.NewToken(RoleNode, 0, 1) },
		"negative time":       func() (string, error) { return ca.NewToken(RoleNode, -time.Hour, 1) },
		"for ever":            func() (string, error) { return ca.NewToken(RoleNode, MaxTokenTTL+1, 1) },
		"no uses":             func() (string, error) { return ca.NewToken(RoleNode, time.Hour, 0) },
		"too many uses":       func() (string, error) { return ca.NewToken(RoleNode, time.Hour, MaxTokenUses+1) },
		"negative uses":       func() (string, error) { return ca.NewToken(RoleNode, time.Hour, -1) },
	} {
		if token, err := make(); err == nil {
			t.Errorf("%s: made %s", name, token)
		}
	}
	if infos, err := ca.Tokens(); err != nil || len(infos) != 0 {
		t.Errorf("left %+v behind, %v", infos, err)
	}
}

// TestDamagedTokenFile: a file that says something else than was written gives
// no certificate, whatever it says.
func TestDamagedTokenFile(t *testing.T) {
	ca := testCA(t)
	token := parsedToken(t, ca, time.Hour, 1)
	path := ca.tokens.path(token.ID)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"empty":     "",
		"cut":       string(good[:len(good)/2]),
		"null":      "null",
		"scheduler": strings.Replace(string(good), `"node"`, `"boss"`, 1),
		"no hash":   strings.Replace(string(good), "secret_sha256", "x", 1),
		"other ID":  strings.Replace(string(good), token.ID, "0000000000000000", 1),
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := take(ca, token); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func anything(Role) bool { return true }
