{{- define "tailspan.name" -}}
{{- if eq .Release.Name "tailspan" }}tailspan{{ else }}{{ printf "%s-tailspan" .Release.Name | trunc 63 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "tailspan.selector" -}}
app.kubernetes.io/name: tailspan
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "tailspan.labels" -}}
{{ include "tailspan.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* How the kubelet asks: over HTTP on the address that the agent listens on, or by the port alone. */}}
{{- define "tailspan.probe" -}}
{{- $host := ternary "127.0.0.1" nil (eq .values.metrics.listen "127.0.0.1") }}
{{- if .values.tls.clientsNeedCertificate }}
tcpSocket:
  port: metrics
  {{- with $host }}
  host: {{ . }}
  {{- end }}
{{- else }}
httpGet:
  path: {{ .path }}
  port: metrics
  scheme: {{ ternary "HTTPS" "HTTP" (and (eq .values.metrics.listen "node") (ne .values.tls.secretName "")) }}
  {{- with $host }}
  host: {{ . }}
  {{- end }}
{{- end }}
{{- end }}
