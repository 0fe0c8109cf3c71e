{{/* The name of a release's objects: of this one, or of another one (dict "release" NAME). */}}
{{- define "equipoise.nameOf" -}}
{{- contains "equipoise" .release | ternary .release (printf "%s-equipoise" .release) | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "equipoise.name" -}}
{{- include "equipoise.nameOf" (dict "release" .Release.Name) }}
{{- end }}

{{/* Labels of a component: (dict "root" $ "component" NAME). */}}
{{- define "equipoise.selector" -}}
app.kubernetes.io/name: equipoise
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "equipoise.labels" -}}
{{ include "equipoise.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{/* What every pod says of itself: the restricted profile. Nothing of it can be changed by values. */}}
{{- define "equipoise.pod" -}}
serviceAccountName: {{ include "equipoise.name" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .user }}
  runAsGroup: {{ .user }}
  fsGroup: {{ .user }}
  seccompProfile: { type: RuntimeDefault }
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
{{- with .root.Values.nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations: {{ toJson . }}
{{- end }}
{{- with .root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "equipoise.selector" . | nindent 8 }}
{{- end }}

{{- define "equipoise.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
{{- end }}

{{- define "equipoise.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ with .Values.image.digest }}@{{ . }}{{ end }}
{{- end }}

{{/* Where the replicas are: an address for each that is ready. (dict "root" $ "release" NAME) */}}
{{- define "equipoise.replicas" -}}
{{ include "equipoise.nameOf" (dict "release" .release) }}-server.{{ .root.Release.Namespace }}.svc.{{ .root.Values.clusterDomain }}
{{- end }}
