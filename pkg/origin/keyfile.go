package origin

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
)

// keyFile is which names a docker config.json or an auth.json of podman has
// credentials under, and who keeps them.
type keyFile struct {
	// repos are the keys of entries of a namespace or repository, by
	// "host/namespace" in one spelling.
	repos map[string]string
	// hosts are the keys of entries of whole registries, by host.
	hosts map[string]string
	// helpers keep credentials of single registries, store those of all others.
	helpers map[string]string
	store   string
}

var errKeyFile = errors.New("not a docker config.json")

// parseKeys reads the names in a docker config.json. Its error holds no part of it.
func parseKeys(text []byte) (keyFile, error) {
	var file struct {
		Auths       map[string]json.RawMessage `json:"auths"`
		CredHelpers map[string]string          `json:"credHelpers"`
		CredsStore  string                     `json:"credsStore"`
	}
	if err := json.Unmarshal(text, &file); err != nil {
		return keyFile{}, errKeyFile
	}
	k := keyFile{repos: map[string]string{}, hosts: map[string]string{}, helpers: file.CredHelpers, store: file.CredsStore}
	for _, key := range slices.Sorted(maps.Keys(file.Auths)) {
		if emptyEntry(file.Auths[key]) {
			continue // docker login leaves these beside a helper
		}
		host, repo := splitKey(key)
		into, name := k.hosts, host
		if repo != "" {
			into, name = k.repos, host+"/"+repo
		}
		if _, taken := into[name]; !taken || key == name {
			into[name] = key
		}
	}
	return k, nil
}

func emptyEntry(raw json.RawMessage) bool {
	var fields map[string]json.RawMessage
	if json.Unmarshal(raw, &fields) != nil {
		return false // looking it up says what is wrong
	}
	for name, v := range fields {
		if name != "email" && string(v) != `""` && string(v) != "null" {
			return false
		}
	}
	return true
}

// splitKey reads a key of auths: a registry, with scheme and path in the old form of
// docker ("https://index.docker.io/v1/"), or a namespace or repository of one. The
// host comes without the port 443.
func splitKey(key string) (host, repo string) {
	bare := strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	host, repo, _ = strings.Cut(bare, "/")
	host = strings.TrimSuffix(strings.ToLower(host), ":443")
	repo = strings.Trim(repo, "/")
	if bare != key || repo == "v1" || repo == "v2" {
		repo = ""
	}
	return host, repo
}

// namespaced is the key of the longest match for a repository of a registry with
// these names; "" where there is none.
func (k keyFile) namespaced(names []string, repo string) string {
	for len(k.repos) > 0 && repo != "" {
		for _, name := range names {
			host, _ := splitKey(name)
			if key, ok := k.repos[host+"/"+repo]; ok {
				return key
			}
		}
		repo = repo[:max(0, strings.LastIndexByte(repo, '/'))]
	}
	return ""
}

// host is the key of the entry of a registry with that name.
func (k keyFile) host(name string) (string, bool) {
	host, _ := splitKey(name)
	key, ok := k.hosts[host]
	return key, ok
}

// helper is who keeps the credential of a registry with that name; "" for the file.
func (k keyFile) helper(name string) string {
	if h := k.helpers[name]; h != "" {
		return h
	}
	return k.store
}
